"""Pairs in the forms of LLaMA-Factory, TRL and ms-swift: what is read, and what is refused."""

import importlib
import random
from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from cot_reward.pairing.audit import audit
from cot_reward.records import conversation
from cot_reward.rows.checking import check_files
from cot_reward.rows.preferences import PairReader, is_preference
from cot_reward.rows.validation import RowError, check_pair_row
from helpers.merging import RIGHT, WRONG
from helpers.pictures import picture
from helpers.preferences import (
    FORMS,
    IMAGES,
    PAIR,
    PARTS,
    PROMPT,
    QUESTION,
    alpaca,
    assistant,
    gpt,
    human,
    sharegpt,
    swift,
    trl,
    trl_implicit,
    user,
)
from helpers.rows import judged_row, write_lines, write_rows

SYSTEM = {"role": "system", "content": "Be strict."}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in IMAGES:
        picture(tmp_path / "media" / name)
    return tmp_path / "media"


def as_pair(row: dict[str, Any]) -> dict[str, Any]:
    return dict(PairReader()(1, row))


def load(path: Path, root: Path) -> Any:
    """The pairs of stage 3, bad ones skipped."""
    # Imported here: it loads `datasets`, which nothing else of this file needs.
    return importlib.import_module("cot_reward.dpo.pairs").load_pairs(
        str(path), str(root), skip_bad_rows=True
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_row_is_read_as_ours(form: str) -> None:
    assert is_preference(FORMS[form])
    pair = as_pair(FORMS[form])
    assert pair == PAIR | {"videos": []}
    assert check_pair_row(pair) == {"images": IMAGES, "videos": []}


def test_instruction_and_input_are_joined_as_llama_factory_joins_them() -> None:
    pair = as_pair(alpaca(instruction="<image>Judge:", input="<image>[a cat]"))
    assert pair["problem"] == "<image>Judge:\n<image>[a cat]"


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("form", ["alpaca", "sharegpt", "trl", "trl, implicit prompt", "swift"])
def test_check_audit_and_stage_3_read_a_file_alike(
    tmp_path: Path, root: Path, form: str, name: str
) -> None:
    path, ours = write_rows(tmp_path / name, [FORMS[form]]), write_lines(tmp_path / "ours", [PAIR])
    checked = check_files([path], root, workers=1)
    assert (checked.problems, checked.rows, checked.images) == ([], 1, 2)
    assert audit(path).to_json() == audit(ours).to_json()
    assert load(path, root).rows == load(ours, root).rows


@pytest.mark.parametrize(
    "row",
    [
        alpaca(system="Be strict."),
        sharegpt(system="Be strict."),
        sharegpt(conversations=[{"from": "system", "value": "Be strict."}, human(PROMPT)]),
        trl(prompt=[SYSTEM, user(PARTS)]),
        trl(prompt=[SYSTEM, user(QUESTION)]),
        trl_implicit(chosen=[SYSTEM, user(PARTS), assistant(RIGHT)],
                     rejected=[SYSTEM, user(PARTS), assistant(WRONG)]),
        swift(messages=[SYSTEM, user(PROMPT), assistant(RIGHT)]),
        swift(system="Be strict."),
        swift(system="Be strict.", messages=[SYSTEM, user(PROMPT), assistant(RIGHT)]),
        PAIR | {"system": "Be strict."},
    ],
)  # fmt: skip
def test_a_system_prompt_reaches_training(tmp_path: Path, root: Path, row: dict[str, Any]) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [row])
    (found,) = load(path, root).rows
    system = {"role": "system", "content": [{"type": "text", "text": "Be strict."}]}
    assert found["prompt"] == [system, user(PARTS)]
    (without,) = load(write_lines(tmp_path / "ours.jsonl", [PAIR]), root).rows
    # Reference log-probs are kept by this digest.
    assert found["digest"] != without["digest"]
    assert check_files([path], root, workers=1).problems == []
    assert audit(path).bad_rows == 0


REFUSED = [
    (alpaca(instruction="<image>Judge"), "1 <image> in the prompt, but 2 in 'images'"),
    (sharegpt(conversations=[human("Judge")]), "0 <image> in the prompt, but 2 in 'images'"),
    (swift(messages=[user("<image>x"), assistant(RIGHT)]), "1 <image> in the prompt, but 2"),
    (swift(messages=[user("x"), assistant(RIGHT)]), "0 <image> in the prompt, but 2"),
    (trl(prompt=[user(PARTS[1:])]), "1 <image> in the prompt, but 2 in 'images'"),
    (trl(prompt=QUESTION), "0 <image> in the prompt, but 2 in 'images'"),
    (trl(images=[]), "2 <image> in the prompt, but 0 in 'images'"),
    (trl_implicit(PROMPT, images=["a.png"]), "2 <image> in the prompt, but 1 in 'images'"),
    (trl(prompt=[user([*PARTS, {"type": "text", "text": "<image>"}])]), "a text in 'prompt' holds"),
    (alpaca(chosen="an <image>"), "'chosen' holds <image>; a trainer would"),
    (swift(rejected_response="x <|im_end|>"), "'rejected' holds <|im_end|>; a model reads"),
    (alpaca(system="<|im_start|>"), "the system prompt holds <|im_start|>; a model reads"),
    (alpaca(rejected=RIGHT), "'chosen' and 'rejected' are the same text"),
    (swift(rejected_response=RIGHT), "'chosen' and 'rejected' are the same text"),
    (trl(rejected=[assistant(" ")]), "'rejected' is empty"),
    (trl(rejected=None), "has no 'rejected'"),
    (swift(rejected_response=[]), "'rejected_response' has no message"),
    (swift(rejected_response=["a", "b"]), "'rejected_response' has 2 answers; a pair has one"),
    (swift(rejected_response=[7]), "a message in 'rejected_response' is no object: 7"),
    (alpaca(prompt="Judge"), "its prompt may be 'prompt' or 'instruction'; take the column out"),
    (PAIR | {"prompt": [user(PARTS)]}, "its prompt may be 'problem' or 'prompt'"),
    (sharegpt(messages=[user("x")]), "its prompt may be 'conversations' or 'messages'"),
    (swift(rejected=gpt(WRONG)), "has 'rejected' and 'rejected_response', which are of two forms"),
    (swift(rejected_messages=[user(PROMPT), assistant("x")]), "its rejected answer may be 'reject"),
    (alpaca(rejected_response="x", rejected=None, chosen=None), "has 'rejected_response', but no"),
    (trl(prompt=[]), "has no prompt: needs one of 'problem', 'prompt'"),
    (trl(prompt=[user(PARTS), assistant("I")]), "'prompt' must end with a question (user), not w"),
    (trl(prompt=[SYSTEM]), "'prompt' must end with a question (user), not with role 'system'"),
    (trl(prompt=["x"]), "a message in 'prompt' is no object: 'x'"),
    (trl(prompt=[{"content": "x"}]), "a message in 'prompt' has no 'role' (or 'from')"),
    (trl(prompt=[user(7)]), "a message in 'prompt' has no text: 7"),
    (trl(prompt=[user([{"type": "audio"}])]), "a part in 'prompt' is no text, image or video"),
    (trl(chosen=[user(PARTS), assistant(RIGHT)]), "'chosen' must be one answer (assistant), and"),
    (trl(chosen=[user(RIGHT)]), "'chosen' must be one answer (assistant), and is 1 messages"),
    (trl_implicit(rejected=[user("x"), assistant(WRONG)]), "'chosen' and 'rejected' must begin"),
    (trl_implicit(PROMPT) | {"prompt": "Another"}, "'prompt' is not the question in"),
    (sharegpt(conversations=[human(PROMPT), gpt("x")]), "'conversations' must end with a question"),
    (swift(messages=[user(PROMPT)]), "'messages' must end with the chosen answer (assistant), not"),
    (swift(rejected_response=None, rejected_messages=[user("x"), assistant(WRONG)]),
     "'rejected_messages' must be 'messages' but for the last, the answer"),
    (swift(rejected_images=["a.png", "c.png"]), "'rejected_images' are others than 'images'"),
    (swift(images=[{"bytes": "abc", "path": None}] * 2), "'images' holds the media themselves"),
    (trl(image="a.png"), "has images in 'images' and in 'image'; name each once"),
    (trl(prompt=[user([{"type": "image", "image": "a.png"}, *PARTS[1:]])]),
     "has images in 'images' and in the messages; name each once"),
    (swift(images=["/data/a.png", "b.png"]), "a path in 'images' is absolute; paths are relative"),
    (trl(tools=[{"name": "f"}]), "has 'tools', which would change what the model is shown"),
    (trl(chat_template_kwargs={"enable_thinking": True}), "has 'chat_template_kwargs', which"),
    (swift(objects={"bbox": [[1, 2]]}), "has 'objects', which would change"),
    (swift(system="Be kind.", messages=[SYSTEM, user(PROMPT), assistant(RIGHT)]),
     "has several system prompts, in the messages and 'system'; keep one"),
    (alpaca(system=["x"]), "'system' must be of type str, not ['x']"),
    (alpaca(instruction=7), "'instruction' must be of type str, not 7"),
    (alpaca(history=["x"]), "'history' must be pairs of texts, not 'x'"),
    (PAIR | {"history": "x"}, "'history' must be of type list, not 'x'"),
    (PAIR | {"system": 7}, "'system' must be of type str, not 7"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_a_bad_row_is_refused_by_all_with_one_sentence(
    tmp_path: Path, root: Path, row: dict[str, Any], message: str
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [row])
    (problem,) = check_files([path], root, workers=1).problems
    assert problem.where == f"{path}:1"
    assert problem.message.startswith(message)
    assert audit(path).bad == [f"{path}:1: {problem.message}"]
    with pytest.raises(UserError) as refused:
        load(path, root)
    assert f"line 1: {problem.message}" in str(refused.value)


# Values of the wrong kind, which another programme may have left anywhere in a row.
WRONG_VALUES: list[Any] = [
    None, "", [], {}, 0, 1.5, True, "<image>", [None], [[]], [{}], {"role": "user"}, {"path": 1},
    [user([None, 3, [], {"type": []}])], [assistant([{"type": "image", "image": {"url": 3}}])],
]  # fmt: skip


def damaged(value: Any, rng: random.Random) -> Any:
    """The value with another one in one place of it."""
    if not value or not isinstance(value, dict | list) or rng.random() < 0.2:
        return rng.choice(WRONG_VALUES)
    places = list(value) if isinstance(value, dict) else range(len(value))
    place = rng.choice(places)
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    changed[place] = damaged(value[place], rng)
    return changed


@pytest.mark.parametrize("form", FORMS)
def test_damaged_rows_are_pairs_or_errors_of_the_row(form: str) -> None:
    """A programme ends with a traceback at any other exception."""
    rng = random.Random(form)
    refused = 0
    for _ in range(300):
        row = damaged(FORMS[form], rng)
        if not isinstance(row, dict):
            continue
        try:
            pair = PairReader()(1, row)
            check_pair_row(pair)
            assert pair["problem"].count("<image>") == len(pair["images"])
        except RowError:
            refused += 1
    assert refused


EARLIER = [user("<image>First"), assistant("Yes."), user("<image>And now?")]
MULTI_TURN = [
    alpaca(instruction="<image>And now?", history=[["<image>First", "Yes."]]),
    sharegpt(conversations=[human("<image>First"), gpt("Yes."), human("<image>And now?")]),
    trl(prompt=EARLIER),
    trl_implicit(chosen=[*EARLIER, assistant(RIGHT)], rejected=[*EARLIER, assistant(WRONG)]),
    swift(messages=[*EARLIER, assistant(RIGHT)]),
    # A system prompt that is not the first message.
    trl(prompt=[user("<image>First"), SYSTEM, user("<image>And now?")]),
]


@pytest.mark.parametrize("row", MULTI_TURN)
def test_turns_before_the_question_are_audited_and_not_trained_on(
    tmp_path: Path, root: Path, row: dict[str, Any]
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [row])
    message = "its prompt has 2 turns before the last question; stage 3 trains on one question (and"
    (problem,) = check_files([path], root, workers=1).problems
    assert problem.message.startswith(message)
    with pytest.raises(UserError, match="turns before the last question"):
        load(path, root)
    assert audit(path).bad_rows == 0
    fewer = write_lines(tmp_path / "rows.jsonl", [row | {"images": ["a.png"]}])
    assert "2 <image> in the prompt, but 1 in 'images'" in audit(fewer).bad[0]


KINDS = ["alpaca", "sharegpt", "trl", "swift"]


@pytest.mark.parametrize("first", [*KINDS, "ours"])
def test_rows_of_another_form_in_a_file_are_named(tmp_path: Path, root: Path, first: str) -> None:
    rows: dict[str, Any] = {kind: FORMS[kind] for kind in KINDS} | {"ours": PAIR}
    others = [kind for kind in rows if kind != first]
    path = write_lines(tmp_path / "x.jsonl", [rows[kind] for kind in (first, *others, first)])
    problems = check_files([path], root, workers=1).problems
    assert [problem.row for problem in problems] == [2, 3, 4, 5]
    for problem in problems:
        assert "and record 1 of its file is in" in problem.message
        assert "a file of their own" in problem.message
    assert audit(path).bad_rows == 4
    assert [what.split(": ", 1)[1] for what in load(path, root).problems] == [
        problem.message for problem in problems
    ]


def test_judged_rows_and_pairs_may_share_a_file_of_the_check(tmp_path: Path, root: Path) -> None:
    rows = [judged_row(RIGHT), sharegpt(), {"conversations": conversation("x", "y")}, sharegpt()]
    path = write_lines(tmp_path / "x.jsonl", rows)
    assert check_files([path], root, workers=1).problems == []
    assert not is_preference(rows[0])


def test_a_key_of_ours_brings_our_fields_and_another_id_does_not() -> None:
    ours = {"id": "a" * 64, "task": "image_generation", "order": "swapped", "chosen_answer": 2}
    assert as_pair(swift(**ours, label=1)) == PAIR | {"videos": []} | ours
    # An answer of another project may count from 0, or mean something else.
    others = {"id": 7, "order": "asc", "chosen_answer": 1, "chosen_model": "m"}
    assert as_pair(alpaca(**others)) == PAIR | {"videos": [], "chosen_model": "m"}


def test_texts_alone_are_a_pair_for_the_audit(tmp_path: Path, root: Path) -> None:
    row = {"prompt": [user("Why?")], "chosen": [assistant("So.")], "rejected": [assistant("No.")]}
    path = write_lines(tmp_path / "x.jsonl", [row])
    assert audit(path).bad_rows == 0
    (problem,) = check_files([path], root, workers=1).problems
    assert problem.message == "has no 'images'"


def test_pairs_of_videos_keep_their_column(tmp_path: Path, root: Path) -> None:
    row = swift(messages=[user("<video><video>x"), assistant(RIGHT)], videos=["a.mp4", "b.mp4"])
    del row["images"]
    path = write_lines(tmp_path / "x.jsonl", [row])
    assert audit(path).bad_rows == 0
    (problem,) = check_files([path], root, workers=1).problems
    assert problem.message == "has videos; stage 3 trains on images only"
