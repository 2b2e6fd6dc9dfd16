"""Held-out comparisons in memory: what is found, and how often it counts."""

import pytest
from cot_reward.errors import UserError
from cot_reward.records import comparison_key
from cot_reward.rows.file_flags import HeldOutFile
from cot_reward.rows.held_out import HeldOut, exclude_warnings
from cot_reward.rows.responses import pictures_digest
from helpers.pictures import picture
from helpers.rows import judged_row, raw_row, write_lines

CAT = ("x/a.png", "x/b.png")


def key(caption, images=CAT):
    return comparison_key("image_generation", caption, (), images)


def test_a_comparison_counts_once_for_each_file_that_holds_it(tmp_path):
    first = write_lines(tmp_path / "first.jsonl", [raw_row("a cat", CAT), raw_row("a dog", CAT)])
    second = write_lines(
        tmp_path / "second.jsonl", [judged_row("text", caption="a cat", images=CAT)]
    )
    held_out = HeldOut([HeldOutFile(first, ""), HeldOutFile(second, "")], tmp_path)
    for _ in range(3):
        assert held_out.look_up([key("a cat")], []) == [str(first), str(second)]
        assert held_out.look_up([key("a dog", CAT[::-1])], []) == [str(first)]
        assert held_out.look_up([key("a fox")], []) == []
        assert held_out.look_up([key("A fox")], [pictures_digest(CAT[::-1])]) == []
    met = held_out.met
    assert [met[str(path)].comparisons for path in (first, second)] == [2, 1]
    assert [met[str(path)].of_same_pictures for path in (first, second)] == [1, 1]
    assert held_out.left_out == 2
    assert held_out.row_counts == {str(first): 2, str(second): 1}
    assert held_out.all_have_pictures


def test_one_file_may_be_given_with_two_roots(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [raw_row("a cat", ["a.png", "b.png"])])
    held_out = HeldOut([HeldOutFile(path, "x"), HeldOutFile(path, "y")], tmp_path)
    assert held_out.look_up([key("a cat")], []) == [str(path)]
    assert held_out.look_up([key("a cat", ("y/b.png", "y/a.png"))], []) == [str(path)]
    assert held_out.met[str(path)].comparisons == 2


def test_a_row_that_is_a_key_alone_has_no_pictures(tmp_path):
    path = write_lines(tmp_path / "keys.jsonl", [{"id": key("a cat")}])
    held_out = HeldOut([HeldOutFile(path, "")], tmp_path)
    assert held_out.files_with([key("a cat")]) == [str(path)]
    assert not held_out.all_have_pictures
    assert held_out.doubts == {}


def test_what_is_said_names_the_data_that_were_compared(tmp_path):
    empty = write_lines(tmp_path / "empty.jsonl", [])
    lost = write_lines(tmp_path / "lost.jsonl", [raw_row("a cat", ["gone.png", "lost.png"])])
    there = write_lines(tmp_path / "there.jsonl", [raw_row("a cat", CAT)])
    picture(tmp_path / CAT[0])
    files = [HeldOutFile(path, "") for path in (empty, lost, there)]
    held_out = HeldOut(files, tmp_path)
    held_out.look_up([key("A cat")], [pictures_digest(CAT)])
    told = list(exclude_warnings(held_out.met, held_out.doubts, "the data"))
    start = "warning: --exclude"
    assert told[0].startswith(f"{start} {empty}: none of its comparisons is among the data, and it")
    assert "its images are not where its paths lead" in told[1]
    assert "see that it is other data" in told[2]
    assert "1 comparisons of the data show the same pictures" in told[3]
    assert len(told) == 4


def test_a_held_out_row_that_cannot_be_read_is_an_error(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [raw_row("a cat", CAT), {"images": list(CAT)}])
    with pytest.raises(UserError, match=r"rows\.jsonl:2: no key as 'id', .* needs every row"):
        HeldOut([HeldOutFile(path, "")], tmp_path)
