"""Chains of thought."""

from collections.abc import Sequence


def cot(
    first: Sequence[object] = (8, 7, 9),
    second: Sequence[object] = (6, 7, 5),
    answer: int = 1,
    noun: str = "Image",
    totals: tuple[object, object] | None = None,
    remark: str = "",
) -> str:
    """A chain of thought: scores per dimension, their sums, the answer."""
    stated = totals or (sum(map(int, map(str, first))), sum(map(int, map(str, second))))
    lines = [
        f"{number}. Dimension {number}: {noun} 1 ({a}/10) - fine; {noun} 2 ({b}/10) - {remark}so"
        for number, (a, b) in enumerate(zip(first, second, strict=True), 1)
    ]
    lines += [
        "Total score:",
        f"{noun} 1: {'+'.join(map(str, first))}={stated[0]}",
        f"{noun} 2: {'+'.join(map(str, second))}={stated[1]}",
    ]
    return thought("\n".join(lines), answer, noun)


def thought(reasoning: str, answer: int = 1, noun: str = "Image") -> str:
    """A well-formed completion with this reasoning."""
    return f"<think>\n{reasoning}\n</think>\n<answer>{noun} {answer} is better</answer>"
