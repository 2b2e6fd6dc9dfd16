"""What sends the requests of a run: this process, or several of them."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cot_reward.client.fleet import Fleet
from cot_reward.client.roster import Roster
from cot_reward.client.sender import FleetSender
from cot_reward.inference.served_model import Acquaintance
from cot_reward.inference.settings import InferenceSettings
from cot_reward.media.paths import ImageRoots
from cot_reward.media.sent import MediaReader, url_reader


@dataclass(frozen=True)
class Media:
    """How the media of a run are read and sent (see `url_reader`)."""

    roots: ImageRoots
    form: Literal["inline", "file"]
    max_pixels: int
    cache: Path

    @classmethod
    def of(cls, settings: InferenceSettings, roots: ImageRoots) -> "Media":
        cache = settings.media_root / ".cache" / "media"
        return cls(roots, settings.media, settings.image_max_pixels, cache)

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], Iterable[bytes]]]:
        with MediaReader(self.max_pixels, self.cache) as reader:
            yield url_reader(reader, self.roots, self.form)


@dataclass(frozen=True)
class SendingWork:
    """What a sending process needs to know; `client.processes.Work` of a run.

    `known`: the servers as the planning process met them, so that every process holds them against
    the same weights.
    """

    settings: InferenceSettings
    api_key: str
    known: Acquaintance
    media: Media

    @asynccontextmanager
    async def sender(
        self, stop: asyncio.Event, say: Callable[[str], None], share: int
    ) -> AsyncGenerator[FleetSender, None]:
        settings, fleet = self.settings, Fleet(stop)
        # Files were tried by the planning process.
        known = replace(self.known, file_root=None)
        async with new_roster(settings, self.api_key, fleet, stop, say, share) as roster:
            await roster.join(known.meet)
            with self.media.reader() as read_url, FleetSender(fleet, read_url) as sender:
                yield sender


def new_roster(
    settings: InferenceSettings,
    api_key: str,
    fleet: Fleet,
    stop: asyncio.Event,
    say: Callable[[str], None],
    share: int = 1,
) -> Roster:
    """The servers of a run, none of which has joined. Raises ServerError."""
    return Roster(
        settings.addresses, settings.servers, api_key, fleet, settings.fixed_concurrency,
        settings.max_pause, stop, say, share,
    )  # fmt: skip
