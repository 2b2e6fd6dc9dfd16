"""Pictures of a caller: paths, bytes or pictures in memory; checked, bounded, encoded.

Nothing is written: a picture in memory never touches the disk.
"""

import asyncio
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from PIL import Image

from cot_reward.media.images import MAX_BYTES, bound, loaded_copy, read_file
from cot_reward.media.paths import MediaError
from cot_reward.media.sent import as_png, data_url, to_send

T = TypeVar("T")

# A path, the bytes of a file, or a picture in memory.
Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image
# A name of bytes and of pictures in memory, for errors.
_UNNAMED = Path("a picture in memory")
# Encoded pictures that are kept: 600 of 512 x 512 as PNG.
CACHE_BYTES = 2**28


@dataclass(frozen=True)
class Shown:
    """A picture as a request holds it.

    digest: of its content; the same for a file and for its bytes
    url: the JSON string of its data URL
    """

    digest: str
    url: bytes


def is_picture(value: object) -> bool:
    """Whether a value has the type of a picture."""
    return isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)


def held(value: Any) -> Any:
    """A picture, or a list of pictures, as it is now; texts and paths stay as they are.

    What the caller draws later does not change it.
    """
    if isinstance(value, Image.Image):
        # One that cannot be copied is a failure later, where it is prepared.
        with suppress(MediaError):
            return loaded_copy(value, _UNNAMED)
    if isinstance(value, bytearray | memoryview):
        with suppress(ValueError):
            return bytes(value)
    if isinstance(value, list | tuple):
        return tuple(map(held, value))
    return value


class _Source:
    """What a caller gave, read into memory. Raises MediaError."""

    def __init__(self, picture: Picture) -> None:
        with _readable():
            self._read(picture)

    def _read(self, picture: Picture) -> None:
        self.path, self.data, self.image = _UNNAMED, b"", None
        digest = hashlib.sha256()
        if isinstance(picture, Image.Image):
            # A copy: the caller may go on drawing.
            image = self.image = loaded_copy(picture, _UNNAMED)
            seen = (image.mode, image.size, image.getpalette(), image.info.get("transparency"))
            digest.update(repr(seen).encode())
            digest.update(image.tobytes())
        else:
            if isinstance(picture, bytes | bytearray | memoryview):
                self.data = bytes(picture)
            else:
                self.path = Path(picture)
                self.data = read_regular_file(self.path)
            if not self.data:
                raise MediaError(f"{self.path}: empty (0 bytes)", "empty")
            if len(self.data) > MAX_BYTES:
                raise MediaError(
                    f"{self.path}: {len(self.data):,} bytes, more than {MAX_BYTES:,}", "too_large"
                )
            digest.update(self.data)
        self.digest = digest.hexdigest()

    def url(self, max_pixels: int) -> bytes:
        """Raises MediaError."""
        with _readable():
            if self.image is not None:
                try:
                    sent = as_png(bound(self.image, max_pixels)), "image/png"
                except MediaError as error:
                    raise MediaError(f"{self.path}: {error}", error.reason) from None
            else:
                sent = to_send(self.data, self.path, max_pixels)
            return b"".join(data_url(*sent))


@contextmanager
def _readable() -> Iterator[None]:
    """Whatever a caller's object raises (a mode without pixels, a released view) is a MediaError.

    One bad picture must not cost the others of its batch.
    """
    try:
        yield
    except (MediaError, MemoryError):
        raise
    except Exception as error:
        raise MediaError(f"a picture cannot be read ({error!r:.200})", "corrupt") from None


def read_regular_file(path: Path) -> bytes:
    """The bytes of a file; links are followed. Raises MediaError, for a device or a pipe, too."""
    try:
        # A pipe or a device would be waited for without end.
        found = path.is_file()
    except (OSError, ValueError):  # a name that is too long, a NUL byte
        found = False
    if not found:
        raise MediaError(f"{path}: there is no such file; check the path", "missing")
    return read_file(path, lambda stream: stream.read())


@dataclass(eq=False)
class _Coming:
    """A picture that is being encoded, and how many wait for it."""

    task: asyncio.Task[Shown]
    waiting: int = 0


class Pictures:
    """Prepares pictures in threads; each content is encoded once while it is kept.

    What a caller gives up is not worked on any more, unless others wait for the same picture.
    `encoded` counts them. All methods belong to one event loop.
    """

    def __init__(self, max_pixels: int, threads: int, cache_bytes: int = CACHE_BYTES) -> None:
        self.max_pixels = max_pixels
        self.encoded = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cot_reward-pictures")
        # Who waits for a thread waits here: the pool's own queue would hold the pictures of callers
        # that have gone.
        self._threads = asyncio.Semaphore(threads)
        self._most_bytes, self._bytes = cache_bytes, 0
        # Digest -> what is sent, the one that was used last at the end.
        self._kept: OrderedDict[str, Shown] = OrderedDict()
        self._coming: dict[str, _Coming] = {}

    async def digest_of(self, picture: Picture) -> str:
        """The sha256 of a picture's content (hexadecimal), not decoded. Raises MediaError."""
        return (await self._in_thread(_Source, picture)).digest

    async def shown(self, picture: Picture) -> Shown:
        """A picture as it is sent. Raises MediaError."""
        source = await self._in_thread(_Source, picture)
        digest = source.digest
        if (kept := self._kept.get(digest)) is not None:
            self._kept.move_to_end(digest)
            return kept
        coming = self._coming.get(digest)
        if coming is None:
            task = asyncio.get_running_loop().create_task(self._encode(source))
            # Looked at here, for all who wait may have given up.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            coming = self._coming[digest] = _Coming(task)
        coming.waiting += 1
        try:
            # Shielded: a caller that gives up must not take the picture from the others.
            return await asyncio.shield(coming.task)
        finally:
            coming.waiting -= 1
            if not coming.waiting:
                coming.task.cancel()
                if self._coming.get(digest) is coming:
                    del self._coming[digest]

    async def _encode(self, source: _Source) -> Shown:
        url = await self._in_thread(source.url, self.max_pixels)
        self.encoded += 1
        shown = self._kept[source.digest] = Shown(source.digest, url)
        self._bytes += len(url)
        while self._bytes > self._most_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped.url)
        return shown

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """The result of `work`. A thread that has begun is occupied until it ends."""
        loop = asyncio.get_running_loop()
        await self._threads.acquire()
        try:
            running = self._pool.submit(work, *arguments)
        except BaseException:
            self._threads.release()
            raise

        def release(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._threads.release)

        running.add_done_callback(release)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
