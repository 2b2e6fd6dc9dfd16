"""What all examples of rewards have in common."""

import sys

from helpers.rewards import examples


def test_an_example_is_short_and_its_name_shadows_nothing():
    # Trainers put the folder of an example in front of the import path.
    for path in examples():
        assert len(path.read_text().splitlines()) < 40, path
        assert path.stem not in (*sys.stdlib_module_names, "trl", "verl", "swift")
    assert len(examples()) == 3
