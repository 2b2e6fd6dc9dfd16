"""A stated total, and the patterns that both readers of totals share."""

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

# Bounded, so that sums of scores are exact in Decimal whatever a text holds.
NUMBER = r"\d{1,9}(?:\.\d{1,9})?"
# The maximum in 8/10 and 8 out of 10 is not part of the score.
MAXIMUM = r"\s*(?:/|\bout\s+of\b)\s*\d{1,9}"
# A summand may say what it is for: 8 (aesthetics).
_TERM = rf"{NUMBER}(?:{MAXIMUM})?(?:\s*\([^()\d]{{1,40}}\))?"
WRITTEN_SUM = rf"{_TERM}(?:\s*\+\s*{_TERM})+"
SUMMAND = re.compile(rf"({NUMBER})(?:{MAXIMUM})?")
EQUALS = r"(?:=|→|⇒|->)"
# A number before one of these is not a total. It is part of a longer number, of a calculation, of a
# pair ("25 and 18") or of a table's row with more columns, or it counts things ("3 cats").
CONTINUATION = (
    r"\d|[.,]\d|[^\S\n]+\d|[\s*)]*[+×÷]|\s*[-−–*x/]\s*\d|\s*(?:[,;:&]|\b(?:and|vs|to)\b\.?)\s*\d"
    r"|[\s*]*\|[\s*]*\d"
    r"|\s+(?!(?:image|video|answer|points?|pts|and|but|while|whereas|vs|versus|against|so|in|is|for|to"
    r"|with|which|since|because|as)\b)(?-i:[a-z])"
)
# The heading of the totals: "Total score:", "**Totals**", "总分", ...
# Here and below a look at the first letter comes first: it halves the time of a text.
HEADING = re.compile(
    r"(?=[tof总總合])(?:\b(?:total(?:s|ed|l?ing)?|(?:overall|final)\s+scores?)\b"
    r"|[总總]得?分|总评分|[总總合][计計])",
    re.IGNORECASE,
)
# Full-width ASCII and the ideographic space. (NFKC does this too, but takes quadratic time on long
# runs of combining marks, and makes a summand of the exponent in "8²".)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
NOUNS = {
    "Image": "Image|图像|图片|圖像|圖片|图",
    "Video": "Video|视频|影片",
    "Answer": "Answer|回答|答案",
}


@dataclass(frozen=True)
class StatedTotal:
    """The total that a text states for one candidate.

    `summands` are the numbers of the sum, () when it is not written out. `start` is the place in
    the text.
    """

    total: Decimal
    summands: tuple[Decimal, ...]
    start: int

    @property
    def adds_up(self) -> bool:
        """Whether the sum is the total, rounded as the total is written (8.33 + 7.33 = 15.7)."""
        if not self.summands:
            return True
        exact = sum(self.summands, Decimal(0))
        # Rounding takes its time, and most sums need none.
        return exact == self.total or exact.quantize(self.total, ROUND_HALF_UP) == self.total


def with_ascii_digits(text: str) -> str:
    """The text with full-width digits and signs as ASCII."""
    return text if text.isascii() else text.translate(_FULL_WIDTH)
