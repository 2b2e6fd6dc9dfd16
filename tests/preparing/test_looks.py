"""Looks: perceptual hashes that find a picture again when it was encoded anew."""

import io
from itertools import combinations

import pytest
from cot_reward.preparing.looks import MOST_BITS, Looks, look_of
from helpers.pictures import noise
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

# Of ordinary pictures half of the bits are set.
HASHES = st.permutations(range(64)).map(lambda bits: sum(1 << bit for bit in bits[:32]))
BITS = st.sets(st.integers(0, 63), max_size=MOST_BITS)


@given(HASHES, BITS, st.lists(HASHES, max_size=20))
def test_a_hash_with_other_bits_has_the_same_number(
    look: int, bits: set[int], others: list[int]
) -> None:
    looks = Looks()
    for other in others:
        looks.number(other)
    number = looks.number(look)
    assert number is not None
    assert looks.number(look ^ sum(1 << bit for bit in bits)) == number


@given(st.sets(HASHES, max_size=30))
def test_hashes_that_differ_more_have_numbers_of_their_own(hashes: set[int]) -> None:
    apart: list[int] = []
    for look in hashes:
        if all((look ^ other).bit_count() > MOST_BITS for other in apart):
            apart.append(look)
    looks = Looks()
    assert len({looks.number(look) for look in apart}) == len(apart)


@pytest.mark.parametrize("colour", [(0, 0, 0), (250, 250, 250), (9, 90, 200)])
def test_a_plain_picture_has_no_number(colour: tuple[int, int, int]) -> None:
    assert Looks().number(look_of(Image.new("RGB", (64, 64), colour))) is None


def test_pictures_are_found_again_and_not_taken_for_others() -> None:
    pictures = [
        noise("RGB", 8, 8, seed).resize((256, 256), Image.Resampling.BICUBIC) for seed in range(60)
    ]
    looks = Looks()
    numbers = [looks.number(look_of(picture)) for picture in pictures]
    assert all(one != other for one, other in combinations(numbers, 2))
    again = []
    for picture in pictures:
        file = io.BytesIO()
        picture.resize((160, 160)).save(file, "WEBP", quality=70)
        again.append(looks.number(look_of(Image.open(file))))
    assert sum(map(int.__eq__, numbers, again)) >= 58
