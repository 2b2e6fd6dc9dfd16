"""The service from start to end: it listens, answers, and ends with what is in flight."""

import asyncio
import contextlib
import os
import socket
import sys
import warnings
from dataclasses import replace
from types import FrameType

import uvicorn

from cot_reward.client.server import ServerError
from cot_reward.errors import UserError
from cot_reward.reward.model import RewardModel
from cot_reward.reward.settings import RewardSettings
from cot_reward.service.app import make_app
from cot_reward.service.limits import Places
from cot_reward.service.readiness import Readiness
from cot_reward.service.settings import ServiceSettings
from cot_reward.tasks import TASKS

# A server that is out is waited for as long as the service runs: requests end by their own limits.
_NEVER_GIVE_UP = 1e9
# What answers need to be written after the last request has ended.
_WRITING_SECONDS = 5.0
# An idle connection is kept longer than callers leave theirs: one that is closed in the moment in
# which it is used again looks like a broken service.
_KEEP_ALIVE_SECONDS = 75
# Connections that the system holds until they are accepted; it may hold fewer.
_BACKLOG = 2048


class _Server(uvicorn.Server):
    """Ends with the requests that are in flight, and turns them away when the grace is over."""

    def __init__(self, config: uvicorn.Config, places: Places, grace: float) -> None:
        super().__init__(config)
        self._places, self._grace = places, grace
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is not None and not self.should_exit:
            # Whoever reads the log may have gone.
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                print(
                    f"stopping: {self._places.inside} requests have {self._grace:g} s to end in",
                    file=sys.stderr,
                )
            self._loop.call_soon_threadsafe(
                self._loop.call_later, self._grace, self._places.closed.set
            )
        super().handle_exit(sig, frame)


def serve(asked: RewardSettings, settings: ServiceSettings, api_key: str) -> int:
    """Serve until a signal ends it. Raises UserError when it cannot listen.

    api_key: of the server behind
    """
    key = os.environ.get(settings.service_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the key in {settings.service_key_env} holds letters that callers cannot send in a "
            "header; set one of plain letters and digits"
        )
    # Of pictures that callers send: a line for each would fill the log.
    warnings.filterwarnings("ignore", module="PIL")
    asked = replace(
        asked,
        timeout=min(asked.timeout, settings.max_time_limit),
        deadline=min(asked.deadline, settings.max_time_limit),
        max_pause=_NEVER_GIVE_UP,
    )
    model = RewardModel.of(asked, api_key)
    try:
        readiness = Readiness(
            asked.base_url, lambda: asked.model or model.served.get("model"), api_key
        )
    except ServerError as error:
        raise UserError(str(error)) from None
    with _listening(settings) as listening:
        places = Places(settings.max_working, settings.max_queued, settings.max_buffered_bytes)
        app = make_app(
            model, TASKS[asked.task], readiness, settings, places, key,
        )  # fmt: skip
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(settings.grace + _WRITING_SECONDS),
        )  # fmt: skip
        host, port = listening.getsockname()[:2]
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        if not key and not _is_local(host):
            print(
                f"warning: everybody who reaches {host} can ask: {settings.service_key_env} names "
                "no key that callers must send",
                file=sys.stderr,
            )
        _Server(config, places, settings.grace).run([listening])
    return 0


def _listening(settings: ServiceSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host {settings.host} --port {settings.port}: cannot be listened on ({error}); name "
            "another port, or an address of this machine"
        ) from None


def _is_local(host: str) -> bool:
    return host.startswith("127.") or host == "::1"
