"""Sending by several processes: one process is bound to one core, and a fast fleet needs more.

Each process has a fleet of all servers, with its part of every server's limit. The process that
starts them plans and keeps the outcomes; requests and outcomes travel through pipes.
"""

import asyncio
import multiprocessing
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, Protocol

from cot_reward.client.fleet import merged_summary
from cot_reward.client.sender import FleetSender
from cot_reward.client.server import ServerError
from cot_reward.client.wire import Outcome, Request

# How long a process may take to end by itself.
END_SECONDS = 10.0


class Work(Protocol):
    """What a process needs to send requests; it travels there by pickle."""

    def sender(
        self, stop: asyncio.Event, say: Callable[[str], None], share: int
    ) -> AbstractAsyncContextManager[FleetSender]:
        """A sender whose servers have joined. `share`: the number of processes."""


# --- in a sending process -------------------------------------------------------------------------


def _main(pipe: Connection, work: Work, share: int, speaks: bool) -> None:
    # Ctrl-C reaches all processes of a terminal; the one that planned the requests decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        asyncio.run(_send_all(pipe, work, share, speaks))
    except (ServerError, OSError) as error:
        with suppress(OSError):
            pipe.send([("failed", error)])


async def _send_all(pipe: Connection, work: Work, share: int, speaks: bool) -> None:
    """Send what comes through the pipe until it says "end", or until the other end is closed.

    Before its servers have joined, "stop" ends it as well: nothing is in flight.
    """
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    joining = True
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: list[tuple[Any, ...]] = []
    stop, running = asyncio.Event(), dict[asyncio.Task[list[Outcome]], int]()

    def read() -> None:
        with suppress(EOFError, OSError):
            while True:
                loop.call_soon_threadsafe(take, pipe.recv())
        with suppress(RuntimeError):  # the loop may have ended
            loop.call_soon_threadsafe(take, ("closed",))

    def take(message: tuple[Any, ...]) -> None:
        inbox.put_nowait(message)
        if joining and this and message[0] in ("stop", "end", "closed"):
            this.cancel()

    def tell(*message: Any) -> None:
        if not outbox:
            loop.call_soon(flush)
        outbox.append(message)

    def flush() -> None:
        if not outbox:
            return
        messages = [*outbox, ("room", sender.room)]
        outbox.clear()
        # Nobody reads any more where the other process was killed.
        with suppress(OSError):
            pipe.send(messages)

    def say(line: str) -> None:
        # All processes see the same servers, and the one that plans has told who joined.
        if speaks and not joining:
            tell("say", line)

    def ended(task: asyncio.Task[list[Outcome]]) -> None:
        number = running.pop(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ServerError | OSError):
            tell("error", number, error)
        elif error:
            # Another error may not travel.
            tell("error", number, RuntimeError(repr(error)))
        else:
            tell("outcomes", number, [] if task.cancelled() else task.result())

    def gone() -> None:
        tell("gone", sender.gone)
        for task in running:
            task.cancel()

    threading.Thread(target=read, daemon=True).start()
    async with AsyncExitStack() as stack:
        try:
            sender = await stack.enter_async_context(work.sender(stop, say, share))
        except asyncio.CancelledError:
            # By `take`.
            return
        joining = False
        sender.when_gone(gone)
        tell("ready")
        while (message := await inbox.get())[0] not in ("end", "closed"):
            match message:
                case ("request", number, request):
                    task = asyncio.create_task(sender.outcomes(request))
                    running[task] = number
                    task.add_done_callback(ended)
                case ("more", more):
                    sender.more_coming = more
                case ("stop",):
                    stop.set()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if message[0] == "end":
            tell("summary", sender.summary())
            flush()


# --- in the process that plans --------------------------------------------------------------------


@dataclass(eq=False)
class _Child:
    process: Any
    pipe: Connection
    room: int = 1
    waiting: dict[int, asyncio.Future[list[Outcome]]] = field(default_factory=dict)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    # Why it cannot send.
    error: Exception | None = None
    summary: dict[str, Any] = field(default_factory=dict)


class ProcessSender:
    """Hands requests out to processes. Use as `async with ProcessSender(...) as sender`.

    A process that ends by itself ends the run: what it had in flight has no outcome.
    """

    def __init__(
        self, processes: int, work: Work, stop: asyncio.Event, say: Callable[[str], None]
    ) -> None:
        self.gone = ""
        self._count, self._work, self._stop, self._say = processes, work, stop, say
        self._children: list[_Child] = []
        self._numbers = count()
        # Comparison -> the process that has requests about it, and their number.
        self._open: dict[str, tuple[_Child, int]] = {}
        self._more_coming = False
        self._when_gone: Callable[[], object] = lambda: None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def more_coming(self) -> bool:
        return self._more_coming

    @more_coming.setter
    def more_coming(self, more: bool) -> None:
        if more != self._more_coming:
            self._more_coming = more
            self._tell_all("more", more)

    @property
    def over(self) -> bool:
        return self._stop.is_set() or bool(self.gone)

    @property
    def room(self) -> int:
        return sum(child.room for child in self._children)

    def when_gone(self, call: Callable[[], object]) -> None:
        self._when_gone = call

    def summary(self) -> dict[str, Any]:
        return merged_summary([child.summary for child in self._children if child.summary])

    async def outcomes(self, request: Request) -> list[Outcome]:
        child, open_requests = self._open.get(request.key) or (self._emptiest(), 0)
        self._open[request.key] = child, open_requests + 1
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        child.waiting[number] = answer
        try:
            if child.error:
                raise child.error
            child.pipe.send(("request", number, request))
            return await answer
        except (BrokenPipeError, ConnectionResetError):
            raise _ended_by_itself(child) from None
        finally:
            child.waiting.pop(number, None)
            child, open_requests = self._open.pop(request.key)
            if open_requests > 1:
                self._open[request.key] = child, open_requests - 1

    def _emptiest(self) -> _Child:
        return min(self._children, key=lambda child: len(child.waiting) / max(1, child.room))

    def _tell_all(self, *message: Any) -> None:
        for child in self._children:
            with suppress(OSError):
                child.pipe.send(message)

    def _read(self, child: _Child, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: everything that a process says, until it ends."""
        with suppress(EOFError, OSError):
            while True:
                loop.call_soon_threadsafe(self._take, child, child.pipe.recv())
        with suppress(RuntimeError):  # the loop may have ended
            loop.call_soon_threadsafe(self._take, child, [("closed",)])

    def _take(self, child: _Child, messages: list[tuple[Any, ...]]) -> None:
        for message in messages:
            match message:
                case ("outcomes", number, outcomes):
                    if (answer := child.waiting.get(number)) and not answer.done():
                        answer.set_result(outcomes)
                case ("error", number, error):
                    if (answer := child.waiting.get(number)) and not answer.done():
                        answer.set_exception(error)
                case ("room", room):
                    child.room = room
                case ("ready",):
                    child.ready.set()
                case ("say", line):
                    self._say(line)
                case ("gone", why):
                    first, self.gone = not self.gone, self.gone or why
                    if first:
                        self._when_gone()
                case ("summary", summary):
                    child.summary = summary
                case ("failed", error):
                    child.error = error
                case ("closed",):
                    if not child.summary:
                        child.error = child.error or _ended_by_itself(child)
                    for answer in child.waiting.values():
                        if not answer.done():
                            answer.set_exception(child.error or _ended_by_itself(child))
                    child.ready.set()
                    child.ended.set()

    async def _pass_stop_on(self) -> None:
        await self._stop.wait()
        self._tell_all("stop")

    async def __aenter__(self) -> "ProcessSender":
        context, loop = multiprocessing.get_context("spawn"), asyncio.get_running_loop()
        for number in range(self._count):
            pipe, other = context.Pipe()
            process = context.Process(
                target=_main, args=(other, self._work, self._count, number == 0), daemon=True
            )
            process.start()
            other.close()
            child = _Child(process, pipe)
            self._children.append(child)
            threading.Thread(target=self._read, args=(child, loop), daemon=True).start()
        self._stopping = asyncio.create_task(self._pass_stop_on())
        joining = asyncio.create_task(self._wait_until_ready())
        try:
            # Once the run is stopped, nothing is asked of processes that have not joined yet.
            await asyncio.wait((joining, self._stopping), return_when=asyncio.FIRST_COMPLETED)
            if joining.done() and not self._stop.is_set():
                joining.result()
        except BaseException:
            await self.end()
            raise
        finally:
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
        return self

    async def _wait_until_ready(self) -> None:
        """Raises what a process raised that cannot send."""
        for child in self._children:
            await child.ready.wait()
            if child.error:
                raise child.error

    async def end(self) -> None:
        """Let the processes end; `summary` is complete from then on."""
        if self._stopping:
            self._stopping.cancel()
        self._tell_all("end")
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                for child in self._children:
                    await child.ended.wait()
        for child in self._children:
            child.process.kill()
            await asyncio.to_thread(child.process.join)
            child.pipe.close()

    async def __aexit__(self, *exception: object) -> None:
        await self.end()


def _ended_by_itself(child: _Child) -> ServerError:
    return ServerError(
        f"a process of --processes ended by itself (exit code {child.process.exitcode}; killed for "
        "its memory?); everything before is kept, the same command continues"
    )
