"""Rows of training: one for each pair, or one for all pairs about a prompt (a group).

A row has the prompt once and each different text once, however many pairs the texts make:

    prompt, image_paths            messages, and paths relative to the image folder
    chosen, rejected               lists of texts
    chosen_digests, rejected_digests   tell each text, with its prompt and images
    pairs                          [[place in chosen, place in rejected], ...]
    answer, same_model, answer_only, weight   one value for each pair, see `pairs.group_labels`
    digest, comparison, task, form   of the row
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

Row = dict[str, Any]
# What the metrics and the loss are told of a pair.
LABELS = ("answer", "same_model", "answer_only", "weight")
SIDES = ("chosen", "rejected")
WEIGHTS = ("pair", "comparison")


def make_rows(
    pairs: Sequence[Mapping[str, Any]],
    groups: bool = False,
    weigh: str = "pair",
    max_row_tokens: int | None = None,
) -> list[Row]:
    """The rows of training from the pairs of a file (`pairs.Pairs.rows`), in the file's order.

    With `groups` the pairs of one comparison and one prompt are a row, at the place of the first of
    them. Where its tokens (`tokens` of the pairs) are more than `max_row_tokens`, the prompt is
    repeated in further rows; a single pair is never cut. `weigh` "comparison": the pairs of a
    comparison weigh 1 together, times the mean number of pairs, so that the mean weight is 1.
    """
    weights = _weights(pairs, weigh)
    together: dict[Any, list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        key = (pair["comparison"], pair["prompt_digest"]) if groups else number
        together[key].append(number)
    return [
        _row([pairs[number] for number in part], [weights[number] for number in part])
        for numbers in together.values()
        for part in _parts(pairs, numbers, max_row_tokens)
    ]


def conversational_pairs(row: Mapping[str, Any]) -> list[Row]:
    """The pairs of a row as TRL's conversational rows, with `image_paths` in place of images."""
    return [
        {
            "prompt": row["prompt"],
            "chosen": _assistant(row["chosen"][chosen]),
            "rejected": _assistant(row["rejected"][rejected]),
            "image_paths": row["image_paths"],
        }
        for chosen, rejected in row["pairs"]
    ]


def digests_of(row: Mapping[str, Any]) -> list[str]:
    """The digests of a row's texts, the chosen ones first."""
    return [*row["chosen_digests"], *row["rejected_digests"]]


def part_with(row: Mapping[str, Any], wanted: Iterable[str]) -> Row | None:
    """A row of only those texts whose digests are `wanted`, for a forward; None without any.

    What is a chosen text there, and which pairs there are, means nothing.
    """
    wanted = set(wanted)
    texts = dict(zip(digests_of(row), [*row["chosen"], *row["rejected"]], strict=True))
    kept = [digest for digest in texts if digest in wanted]
    if not kept:
        return None
    half = (len(kept) + 1) // 2
    sides = {"chosen": kept[:half], "rejected": kept[half:] or kept}
    pairs = [[place, min(place, len(sides["rejected"]) - 1)] for place in range(half)]
    return (
        {"prompt": row["prompt"], "image_paths": row["image_paths"], "pairs": pairs}
        | {side: [texts[digest] for digest in digests] for side, digests in sides.items()}
        | {f"{side}_digests": digests for side, digests in sides.items()}
        | dict.fromkeys(LABELS, [0] * half)
    )


def _weights(pairs: Sequence[Mapping[str, Any]], weigh: str) -> list[float]:
    if weigh == "pair":
        return [1.0] * len(pairs)
    counts = Counter(pair["comparison"] for pair in pairs)
    mean = len(pairs) / len(counts)
    return [mean / counts[pair["comparison"]] for pair in pairs]


def _parts(
    pairs: Sequence[Mapping[str, Any]], numbers: Sequence[int], max_row_tokens: int | None
) -> list[list[int]]:
    """The pairs of a group, cut into parts of at most so many tokens."""
    if max_row_tokens is None:
        return [list(numbers)]
    parts: list[list[int]] = []
    texts: dict[str, int] = {}
    for number in numbers:
        pair = pairs[number]
        own = {pair[f"{side}_digest"]: pair["tokens"][side] for side in SIDES}
        if not parts or pair["tokens"]["prompt"] + sum((texts | own).values()) > max_row_tokens:
            parts.append([])
            texts = {}
        parts[-1].append(number)
        texts |= own
    return parts


def _row(pairs: Sequence[Mapping[str, Any]], weights: Sequence[float]) -> Row:
    first = pairs[0]
    # Digest -> text, in the order of the pairs.
    texts: dict[str, dict[str, str]] = {side: {} for side in SIDES}
    for pair in pairs:
        for side in SIDES:
            texts[side][pair[f"{side}_digest"]] = pair[side][0]["content"]
    places = {side: {digest: n for n, digest in enumerate(texts[side])} for side in SIDES}
    digest = first["digest"]
    if len(pairs) > 1:
        digest = sha256("\n".join(pair["digest"] for pair in pairs).encode()).hexdigest()
    return (
        {name: first[name] for name in ("prompt", "image_paths", "comparison", "task", "form")}
        | {side: list(texts[side].values()) for side in SIDES}
        | {f"{side}_digests": list(texts[side]) for side in SIDES}
        | {"pairs": [[places[side][pair[f"{side}_digest"]] for side in SIDES] for pair in pairs]}
        | {name: [pair[name] for pair in pairs] for name in LABELS if name != "weight"}
        | {"weight": list(weights), "digest": digest}
    )


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
