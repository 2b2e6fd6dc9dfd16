"""Pictures that look alike: perceptual hashes of 64 bits, found again when a few bits differ.

Of photographs that were encoded again as JPEG or WebP, also at half the size, 98% or more differ in
at most two bits of `imagehash.phash`; 78% to 92% have an equal hash (tests/bench/RESULTS.md).
"""

from PIL import Image

MOST_BITS = 2
# A hash with so few bits of a picture that has next to no structure says nothing.
_PLAIN_BITS = 8
# Hashes that differ in at most MOST_BITS bits are equal in one of MOST_BITS + 1 parts.
_PARTS = ((0, (1 << 21) - 1), (21, (1 << 21) - 1), (42, (1 << 22) - 1))


def look_of(image: Image.Image) -> int:
    """The perceptual hash of a picture."""
    # Loading it takes half a second, which other commands do without.
    from imagehash import phash

    # The hash as a text is its bits in hexadecimal.
    return int(str(phash(image)), 16)


class Looks:
    """Numbers for looks: two that differ in at most MOST_BITS bits have the same number.

    It goes on from one to the next, so that two of a number may differ in more bits.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._by_part: tuple[dict[int, list[int]], ...] = tuple({} for _ in _PARTS)

    def number(self, look: int) -> int | None:
        """The number of a look, a new one unless it is known; None for a look that says nothing."""
        if look.bit_count() <= _PLAIN_BITS or look.bit_count() >= 64 - _PLAIN_BITS:
            return None
        found = self._numbers.get(look)
        if found is None:
            parts = [(look >> shift) & mask for shift, mask in _PARTS]
            near = (
                self._numbers[other]
                for looks, part in zip(self._by_part, parts, strict=True)
                for other in looks.get(part, ())
                if (look ^ other).bit_count() <= MOST_BITS
            )
            found = self._numbers[look] = next(near, len(self._numbers))
            for looks, part in zip(self._by_part, parts, strict=True):
                looks.setdefault(part, []).append(look)
        return found
