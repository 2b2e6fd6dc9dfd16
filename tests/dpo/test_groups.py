"""All pairs about a prompt in one row: the rows, and the same training as by single pairs."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from cot_reward.dpo.collator import keep_first_rows
from cot_reward.dpo.groups import digests_of, make_rows, part_with
from cot_reward.dpo.loss_terms import WeightedMeans
from cot_reward.dpo.pairs import load_pairs
from cot_reward.errors import UserError
from datasets import Dataset
from helpers.dpo import trainer_for, varied, write
from helpers.dpo_results import LOSSES, assert_equal, result

SHAPES = ((2, 3), (1, 2), (1, 1))


def pairs_of_groups(shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[dict[str, Any]]:
    """Each chosen text with each rejected one; the comparisons stand mixed in the file."""
    rows = []
    texts = iter(varied(40))
    for number, (of_chosen, of_rejected) in enumerate(shapes):
        prompt = varied(3, images=(2, 1, 3))[number]
        chosen = [next(texts)["chosen"] + f" c{n}" for n in range(of_chosen)]
        rejected = [next(texts)["rejected"] + f" r{n} long" * n for n in range(of_rejected)]
        rows += [prompt | {"chosen": one, "rejected": two} for one in chosen for two in rejected]
    random.Random(0).shuffle(rows)
    return rows


@pytest.fixture
def trainer(base: Path, folder: Path, tmp_path: Path) -> Any:
    path = write(tmp_path / "pairs.jsonl", pairs_of_groups())
    return trainer_for(base, folder, path, tmp_path / "out", "--groups", "true")[0]


def single_rows(trainer: Any, folder: Path, tmp_path: Path, **settings: Any) -> list[Any]:
    pairs = load_pairs(str(tmp_path / "pairs.jsonl"), str(folder))
    return list(pairs.dataset(**settings))


def move(trainer: Any) -> None:
    """The policy away from its reference."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)


def test_a_group_has_its_prompt_and_each_text_once(folder: Path, tmp_path: Path) -> None:
    rows = pairs_of_groups()
    path = write(tmp_path / "pairs.jsonl", rows)
    pairs = load_pairs(path, str(folder)).rows
    groups = make_rows(pairs, groups=True)
    # In the order of the file, by the first pair of each.
    assert [one["comparison"] for one in groups] == list(dict.fromkeys(row["id"] for row in rows))
    shapes = {one["comparison"]: (len(one["chosen"]), len(one["rejected"])) for one in groups}
    assert shapes == {str(number): shape for number, shape in enumerate(SHAPES)}
    for one in groups:
        told = [
            (one["chosen"][chosen], one["rejected"][rejected]) for chosen, rejected in one["pairs"]
        ]
        own = [row for row in rows if row["id"] == one["comparison"]]
        assert told == [(row["chosen"], row["rejected"]) for row in own]
        assert one["image_paths"] == own[0]["images"]
        assert len(set(digests_of(one))) == sum(shapes[one["comparison"]])
    single = make_rows(pairs)
    assert [one["chosen"] for one in single] == [[row["chosen"]] for row in rows]
    assert [one["digest"] for one in single] == [pair["digest"] for pair in pairs]
    assert len({one["digest"] for one in groups}) == len(SHAPES)


def test_another_order_of_the_images_is_another_group(folder: Path, tmp_path: Path) -> None:
    rows = varied(1)
    rows[0] |= {"images": ["0.png", "2.png"]}
    swapped = rows[0] | {"images": ["2.png", "0.png"], "chosen": "other", "order": "swapped"}
    system = rows[0] | {"system": "Judge.", "rejected": "third"}
    path = write(tmp_path / "pairs.jsonl", [*rows, swapped, rows[0] | {"chosen": "x"}, system])
    groups = make_rows(load_pairs(path, str(folder)).rows, groups=True)
    assert [len(one["pairs"]) for one in groups] == [2, 1, 1]


def test_a_comparison_weighs_the_same_whatever_its_pairs(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", pairs_of_groups())
    pairs = load_pairs(path, str(folder)).rows
    for groups in (True, False):
        rows = make_rows(pairs, groups=groups, weigh="comparison")
        sums = dict.fromkeys("012", 0.0)
        for one in rows:
            sums[one["comparison"]] += sum(one["weight"])
        assert list(sums.values()) == pytest.approx([3, 3, 3])
        assert {weight for one in make_rows(pairs, groups) for weight in one["weight"]} == {1}


def test_a_long_group_becomes_several_rows(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", pairs_of_groups(((2, 3),)))
    pairs = load_pairs(path, str(folder)).rows
    for pair in pairs:
        pair["tokens"] = {"prompt": 50, "chosen": 10, "rejected": 20}
    whole = make_rows(pairs, groups=True, weigh="comparison")
    assert len(whole) == 1
    assert make_rows(pairs, groups=True, weigh="comparison", max_row_tokens=130) == whole
    for bound in (129, 110, 90, 80, 10):
        rows = make_rows(pairs, groups=True, weigh="comparison", max_row_tokens=bound)
        lengths = [50 + 10 * len(one["chosen"]) + 20 * len(one["rejected"]) for one in rows]
        # A single pair is never cut.
        assert max(lengths) <= max(bound, 80)
        told = [
            (one["chosen"][chosen], one["rejected"][rejected], weight)
            for one in rows
            for (chosen, rejected), weight in zip(one["pairs"], one["weight"], strict=True)
        ]
        expected = [(p["chosen"][0]["content"], p["rejected"][0]["content"], 1.0) for p in pairs]
        assert sorted(told) == sorted(expected)
        assert len(rows) > 1


@pytest.mark.parametrize("wanted", [1, 2, 3, 5])
def test_a_part_of_a_row_has_the_wanted_texts_alone(
    folder: Path, tmp_path: Path, wanted: int
) -> None:
    path = write(tmp_path / "pairs.jsonl", pairs_of_groups(((2, 3),)))
    (row,) = make_rows(load_pairs(path, str(folder)).rows, groups=True)
    digests = digests_of(row)[5 - wanted :]
    part = part_with(row, digests)
    assert part
    assert set(digests_of(part)) == set(digests)
    assert {place for pair in part["pairs"] for place in pair} <= {0, 1, 2}
    used = {part["chosen"][chosen] for chosen, _ in part["pairs"]}
    used |= {part["rejected"][rejected] for _, rejected in part["pairs"]}
    assert used == set([*row["chosen"], *row["rejected"]][5 - wanted :])
    assert part_with(row, ["another"]) is None


@pytest.mark.parametrize("shared", ["true", "false"])
def test_a_group_trains_as_its_pairs_do(
    base: Path, folder: Path, tmp_path: Path, shared: str
) -> None:
    """All losses, on a batch of three groups of unequal size, and what is logged."""
    path = write(tmp_path / "pairs.jsonl", pairs_of_groups())
    flags = ("--groups", "true", "--shared_prefix", shared)
    ours, _ = trainer_for(base, folder, path, tmp_path / "out", *flags)
    move(ours)
    groups = ours.data_collator(list(ours.train_dataset))
    singles = ours.data_collator(single_rows(ours, folder, tmp_path))
    if shared == "true":
        assert len(groups["prompt_ids"]) == 3
        assert len(groups["widths"]) == 5
        assert len(groups["input_ids"]) == 15
        assert len(singles["prompt_ids"]) == 9
    for loss in LOSSES:
        smoothing = 0.1 if loss in ("exo_pair", "robust") else 0.0
        settings = {"loss_types": [loss], "loss_weights": [1.0], "label_smoothing": smoothing}
        found = []
        for batch in (groups, singles):
            ours._total_train_tokens = 0
            found.append(_by_pair(result(ours, dict(batch), **settings)))
        together, apart = found
        assert together["metrics"]["rewards/margins"] != 0
        assert_equal(together, apart)


def _by_pair(found: dict[str, Any]) -> dict[str, Any]:
    """Without what the model itself saw, which differs between groups and pairs."""
    return found | {"tokens": torch.zeros(1), "sums": torch.zeros(1)}


def test_weights_count_in_every_term(trainer: Any, folder: Path, tmp_path: Path) -> None:
    """Against each pair alone; a token of a chosen text counts by its pair."""
    move(trainer)
    settings = {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 5.0]}
    trainer.data_collator.preference_tokens = "first_difference"
    singles = single_rows(trainer, folder, tmp_path, weigh="comparison")
    alone = [result(trainer, trainer.data_collator([one]), **settings) for one in singles]
    weights = torch.tensor([one["weight"][0] for one in singles], dtype=torch.float64)
    assert len(set(weights.tolist())) == 3
    tokens = torch.tensor(
        [trainer.data_collator([one])["completion_mask"].chunk(2)[0].sum() for one in singles]
    )

    def mean(name: str, counts: torch.Tensor) -> float:
        values = torch.tensor([one["metrics"][name] for one in alone], dtype=torch.float64)
        return float((values * counts).sum() / counts.sum())

    expected = mean("loss/sigmoid", weights) + 5 * mean("loss/sft", weights * tokens)
    for rows in (
        singles,
        single_rows(trainer, folder, tmp_path, weigh="comparison", groups=True),
    ):
        found = result(trainer, trainer.data_collator(rows), **settings)
        assert found["loss"] == pytest.approx(expected, rel=1e-5)
        assert found["metrics"]["loss"] == pytest.approx(expected, rel=1e-4)
        if rows is singles:
            gradients = found["gradients"]
    for name, gradient in gradients.items():
        bound = 1e-3 * gradient.abs().max() + 1e-6
        assert (found["gradients"][name] - gradient).abs().max() <= bound, name


def test_a_loss_without_a_mean_is_not_taken_for_a_weighted_one() -> None:
    values = torch.tensor([1.0, 2.0])
    with WeightedMeans(torch.tensor([3.0, 1.0])):
        assert values.mean() == 1.25
        assert torch.tensor([1.0, 2.0, 6.0]).mean() == 3
    with pytest.raises(RuntimeError, match="mean"), WeightedMeans(torch.tensor([3.0, 1.0])):
        values.sum()


def test_a_text_of_several_pairs_has_its_reference_computed_once(
    trainer: Any, folder: Path, tmp_path: Path
) -> None:
    """Also in single pairs; five, three and two texts."""
    assert trainer.reference_counts == {"found": 0, "computed": 10}
    batch = trainer.data_collator(list(trainer.train_dataset))
    live = trainer.reference_logps(trainer.model, batch)
    torch.testing.assert_close(batch["ref_logps"], live, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shared", ["true", "false"])
def test_a_batch_without_its_last_groups(
    base: Path, folder: Path, tmp_path: Path, shared: str
) -> None:
    path = write(tmp_path / "pairs.jsonl", pairs_of_groups(((1, 2), (2, 3), (1, 1))))
    flags = ("--groups", "true", "--shared_prefix", shared)
    flags += ("--preference_tokens", "first_difference")
    trainer, _ = trainer_for(base, folder, path, tmp_path / "out", *flags)
    move(trainer)
    rows = list(trainer.train_dataset)
    for count in (1, 2):
        losses = [
            result(trainer, batch)["loss"]
            for batch in (
                keep_first_rows(trainer.data_collator(rows), count),
                trainer.data_collator(rows[:count]),
            )
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_step_weighs_pairs_alike_whatever_the_batches(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    """Three groups in one batch, or one after the other: the loss and weights after a step."""
    path = write(tmp_path / "pairs.jsonl", pairs_of_groups())
    weights, losses = [], []
    for weigh in ("pair", "comparison"):
        for size, steps in ((3, 1), (1, 3)):
            flags = f"--groups true --weigh {weigh} --per_device_train_batch_size {size} "
            flags += f"--gradient_accumulation_steps {steps} --warmup_steps 0"
            trainer, _ = trainer_for(
                base, folder, path, tmp_path / f"{weigh}{size}", *flags.split()
            )
            trainer.train()
            losses.append(trainer.state.log_history[0]["loss"])
            weights.append([one.detach().clone() for one in trainer.model.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[2] == pytest.approx(losses[3], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)
    for first, second in ((0, 1), (2, 3)):
        for one, other in zip(weights[first], weights[second], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--weigh prompt", "--weigh prompt: not one of pair, comparison"),
        ("--max_row_tokens 100", "ignored without --groups"),
        ("--groups true --max_row_tokens 0", "must be at least 1"),
        ("--weigh comparison --loss_type aot --loss_weights 1", "no term of a pair"),
    ],
)
def test_flags_that_cannot_be_meant(
    base: Path, folder: Path, tmp_path: Path, flags: str, message: str
) -> None:
    path = write(tmp_path / "pairs.jsonl", varied(2))
    with pytest.raises(UserError, match=message):
        trainer_for(base, folder, path, tmp_path / "out", *flags.split())


def test_groups_are_announced_and_split_by_their_tokens(
    base: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "pairs.jsonl", pairs_of_groups())
    flags = ("--groups", "true", "--max_steps", "-1", "--num_train_epochs", "1")
    trainer, _ = trainer_for(base, folder, path, tmp_path / "out", *flags)
    told = capsys.readouterr()
    assert "9 pairs about 3 comparisons in 3 groups, 2 steps of 2 groups" in told.out
    assert isinstance(trainer.train_dataset, Dataset)
    flags += ("--max_row_tokens", "120")
    trainer, _ = trainer_for(base, folder, path, tmp_path / "split", *flags)
    told = capsys.readouterr()
    counts = [len(pairs) for pairs in trainer.train_dataset["pairs"][:]]
    assert sum(counts) == 9
    assert len(counts) > 3
    assert f"in {len(counts)} groups" in told.out
    lengths = trainer.data_collator(list(trainer.train_dataset))["attention_mask"].sum(dim=1)
    assert "pairs alone have more than 120 tokens" in told.err or lengths.max() <= 120
