"""Which servers a fleet has: they join when they answer, leave when their address is removed."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cot_reward.client.address import api_address, check_address
from cot_reward.client.capacity import Capacity
from cot_reward.client.fleet import Fleet, Member
from cot_reward.client.outage import MAX_PAUSE_INTERVAL_SECONDS, Outage
from cot_reward.client.server import Server, ServerError
from cot_reward.client.wire import Sampling

# How often the file of addresses is looked at.
LOOK_SECONDS = 2.0
FIRST_RETRY_SECONDS = 1.0
# So long after the first server answered, the start waits for the others.
START_GRACE_SECONDS = 3.0

# Gets to know a server: how it can be asked. Raises ServerError for one that cannot be used.
Meet = Callable[[Server], Awaitable[Sampling]]
T = TypeVar("T")


def read_addresses(fixed: Sequence[str], file: Path | None) -> list[str]:
    """The addresses of servers, each once: the given ones, and those of a file, one a line.

    Empty lines and the rest of a line after # do not count. Raises ValueError for an address that
    cannot be used, and OSError for a file that cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error}); save it as UTF-8") from None
    named = [line.partition("#")[0].strip() for line in lines]
    for place, line in enumerate(named, 1):
        try:
            if line:
                check_address(line)
        except ValueError as error:
            raise ValueError(f"{file}:{place}: {error}") from None
    return list(dict.fromkeys(map(api_address, [*fixed, *filter(None, named)])))


async def _first_results(asked: Iterable[Coroutine[Any, Any, T]]) -> list[T | BaseException | None]:
    """The results of all, or their errors; None of those that take much longer than the first.

    These are cancelled: a server that hangs does not hold up the others.
    """
    tasks = [asyncio.ensure_future(one) for one in asked]
    waiting, until = set(tasks), None
    try:
        while waiting:
            left = None if until is None else until - time.monotonic()
            done, waiting = await asyncio.wait(
                waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            if until is None and not all(task.cancelled() or task.exception() for task in done):
                until = time.monotonic() + START_GRACE_SECONDS
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return [None if task.cancelled() else task.exception() or task.result() for task in tasks]


class Roster:
    """Keeps the members of a fleet. Use as `async with Roster(...) as roster`.

    Servers that do not answer at first, or were given up, are asked again now and then: they may
    come (back) while others work. `limit` and `share` are those of `Capacity`, `max_pause` is of
    `Outage`; `say` gets lines for the user.
    """

    def __init__(
        self,
        fixed: Sequence[str],
        file: Path | None,
        api_key: str,
        fleet: Fleet,
        limit: int | None,
        max_pause: float,
        stop: asyncio.Event,
        say: Callable[[str], None],
        share: int = 1,
    ) -> None:
        """Raises ServerError when no address is given, or one, or the key, cannot be used."""
        self._fixed, self._file, self._api_key = fixed, file, api_key
        self._fleet, self._limit, self._share = fleet, limit, share
        self._max_pause, self._stop, self._say = max_pause, stop, say
        self._meet: Meet
        self._servers: dict[str, Server] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._left: list[Server] = []
        # Addresses that had not answered when the model was known.
        self._slow = set[str]()
        self._look: asyncio.Task[None] | None = None
        try:
            addresses = read_addresses(fixed, file)
        except OSError as error:
            raise ServerError(f"{file}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ServerError(str(error)) from None
        if not addresses:
            raise ServerError(f"{file}: names no server; write one address a line")
        for address in addresses:
            self._servers[address] = Server(address, api_key)
        # A line about one of several servers names it.
        self._several = len(addresses) > 1 or file is not None

    @property
    def servers(self) -> list[Server]:
        return list(self._servers.values())

    async def find_model(self, wanted: str | None) -> str:
        """The model's name; None wants the only model of the first server that answers.

        Raises ServerError when no server answers, or one does not have the model.
        """
        found = await _first_results(server.resolve_model(wanted) for server in self.servers)
        self._slow = {
            address for address, one in zip(self._servers, found, strict=True) if one is None
        }
        errors = [error for error in found if isinstance(error, BaseException)]
        for error in errors:
            if not (isinstance(error, ServerError) and error.may_pass):
                raise error
        models = {model for model in found if isinstance(model, str)}
        if not models:
            raise errors[0]
        if len(models) > 1:
            raise ServerError(
                f"the servers have several models: {', '.join(sorted(models))}; choose by --model"
            )
        return models.pop()

    async def join(self, meet: Meet) -> None:
        """Take in every server that answers now; the others join when they do.

        Raises ServerError when a server cannot be used, or none answers.
        """
        self._meet = meet
        met = dict[str, Member | BaseException | None]()
        # The start has waited for the slow ones once: only where all others fail it does again.
        for slow in (False, True):
            if not any(isinstance(found, Member) for found in met.values()):
                asked = [one for one in self._servers if (one in self._slow) == slow]
                results = await _first_results(self._member(self._servers[one]) for one in asked)
                met |= zip(asked, results, strict=True)
        errors = list[ServerError]()
        for address in list(self._servers):
            found = met.get(address)
            if isinstance(found, Member):
                self._fleet.add(found)
                self._keepers[address] = asyncio.create_task(self._keep(address, found))
                continue
            if found is None:
                found = ServerError(f"{address} has not answered yet", may_pass=True)
            if not (isinstance(found, ServerError) and found.may_pass):
                raise found
            errors.append(found)
            self._keepers[address] = asyncio.create_task(self._keep(address, None))
        if not self._fleet.members:
            raise errors[0]
        for error in errors:
            self._say(f"{error}; it joins when it answers")
        if self._file:
            self._look = asyncio.create_task(self._follow(self._file))

    async def _member(self, server: Server) -> Member:
        """The server as a member. Raises ServerError."""
        sampling = await self._meet(server)

        def say(line: str) -> None:
            self._say(f"{server.base_url}: {line}" if self._several else line)

        async def check_back() -> None:
            await self._meet(server)

        capacity = Capacity(self._limit, say, self._share)
        outage = Outage(server, sampling, self._max_pause, self._stop, say, check_back)
        return Member(server, sampling, capacity, outage)

    async def _keep(self, address: str, member: Member | None) -> None:
        """Let the server join, also after it was given up, until it cannot be used any more."""
        server, wait = self._servers[address], FIRST_RETRY_SECONDS
        while True:
            if member is None:
                await asyncio.sleep(wait)
                wait = min(2 * wait, MAX_PAUSE_INTERVAL_SECONDS)
                try:
                    member = await self._member(server)
                except ServerError as error:
                    if not error.may_pass:
                        self._say(f"{error}; it is not asked")
                        return
                    continue
                self._fleet.add(member)
                self._say(f"{address}: joined")
            await member.gone.wait()
            if not member.outage.gone:
                return
            if self._fleet.members:
                self._say(f"{address}: given up ({member.outage.gone}); the others go on")
            member, wait = None, FIRST_RETRY_SECONDS

    async def _follow(self, file: Path) -> None:
        """Add and remove servers as the file changes; after `max_pause` without any, give up."""
        told, empty_since = "", time.monotonic()
        unusable = set[str]()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                addresses = await asyncio.to_thread(read_addresses, self._fixed, file)
                trouble = ""
            except (OSError, ValueError) as error:
                addresses, trouble = list(self._servers), str(error)
            if trouble != told:
                told = trouble
                if trouble:
                    self._say(f"{trouble}; the servers stay as they are")
            for address in addresses:
                if address in self._servers or address in unusable:
                    continue
                try:
                    self._servers[address] = Server(address, self._api_key)
                except ServerError as error:
                    unusable.add(address)
                    self._say(f"{error}; it is not asked")
                    continue
                self._keepers[address] = asyncio.create_task(self._keep(address, None))
            for address in set(self._servers) - set(addresses):
                await self._leave(address)
            if self._fleet.members:
                empty_since = time.monotonic()
            elif time.monotonic() - empty_since > self._max_pause:
                self._fleet.give_up(f"{file} names no server that answers")
                return

    async def _leave(self, address: str) -> None:
        """Send nothing more to this server; requests in flight there are waited for."""
        server = self._servers.pop(address)
        for member in self._fleet.members:
            if member.server is server:
                self._fleet.remove(member)
                self._say(f"{address}: left, as the file no longer names it")
        self._keepers.pop(address).cancel()
        self._left.append(server)

    async def __aenter__(self) -> "Roster":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Keep the servers no longer, and close their connections."""
        tasks = [*self._keepers.values(), *([self._look] if self._look else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in (*self.servers, *self._left):
            await server.close()
