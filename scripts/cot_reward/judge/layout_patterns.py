"""The patterns of the second reader.

They are for a plain text (`layouts.without_markup`): each run of white space is one space or one
line feed.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from cot_reward.judge.stated import CONTINUATION, HEADING, NOUNS, NUMBER

LATEX_ARROW = re.compile(r"\\(?:to|(?:long)?(?:R|r)ightarrow|implies)\b")
# A star between digits multiplies.
MARKUP_TO_DROP = re.compile(
    r"\\(?:boxed|text[a-z]{0,2}|math[a-z]{2}|left|right|q?quad|displaystyle|[a-z]{0,5}box)\b|\\[()\[\],;!]"
    r"|</?(?:b|strong|i|em|u|span|p|li|ul|ol|h[1-6])>|(?<!\d)\*+|\*+(?![\d*]| ?\d)|`+|~~"
)
MARKUP_TO_SPACE = dict.fromkeys(map(ord, "_\"“”$#{}[]【】「」‘"), " ") | {
    ord("’"): "'", ord("。"): ".", ord("、"): ","
}  # fmt: skip
SPACES = re.compile(r"[^\S\n]+")
BLANK_LINES = re.compile(r" ?\n[ \n]*")
_UNIT = r"(?: ?(?:points?\b|pts\b\.?|分(?!数)))"
_TO_MAXIMUM = r"(?: ?(?:/|out of) ?(?P<maximum>\d{1,9}))"
_OF_MAXIMUM = r"(?: ?(?:/|out of) ?\d{1,9})"
_REMARK = r"(?: ?\([^()\d\n]{1,40}\))"
_NAME = r"(?:[^\W\d][^\d+=|;\n]{0,40}?)"
_SUMMAND_REST = rf"(?:{_OF_MAXIMUM}?{_UNIT}?\)?{_REMARK}?)"
_IS = r"(?:=|≈|→|⇒|->|=>|\b(?:equals|makes|gives|totals|is)\b|等于|等於|共)"
_VALUE = (
    r"(?<![\d−-])(?<!\d[.,/×])(?P<sum>"
    rf"(?P<number>{NUMBER}){_TO_MAXIMUM}?{_UNIT}?"
    # Possessive, so that a sum of any length is read once.
    rf"(?P<rest>(?:\)?{_REMARK}?\s?\+\s?\(?{_NAME}?\(?{NUMBER}{_SUMMAND_REST}?)*+)"
    rf")(?:\)?{_REMARK}?\s?{_IS}\s?(?P<of_sum>{NUMBER}){_OF_MAXIMUM}?{_UNIT}?"
    rf"|\s?[(=]\s?(?P<parts>{NUMBER}{_OF_MAXIMUM}?(?:\s?\+\s?{NUMBER}{_OF_MAXIMUM}?)++)\)?)?"
)
_TAIL = (
    r"(?P<tail>,? ?\(?\b(?:in (?:total|all|sum)|altogether|overall|all told|total)\b\)?"
    r"(?!\s?[:=(]* ?\d))"
)
# Words that are often used for a total, beside those of `HEADING`.
_LIKELY_HEADING = (
    r"\b(?:(?:grand|final|combined|aggregate|cumulative|average|mean|weighted|summed|overall)"
    r" (?:scores?|points|sum|tally|ratings?|results?|marks?|grade)|(?:final )?tally"
    r"|overall(?= ?[:=])"
    r"|sum(?: total)?|add(?:s|ed|ing)?(?: (?:them|it|these|everything|the scores))? up|altogether"
    r"|in all)\b|总和|總和|总成绩|总共|總共|一共|共计|共計|合共|累计|综合得分|综合评分"
    r"|最终得分|最终评分|平均分"
)
# "out of a total of 20" and "Total possible: 20" are no totals of a candidate.
_HEADING_TOKEN = (
    r"(?<!sub-)(?<!sub )(?<!out of a )(?<!of the )(?<!out of )(?<!possible )(?<!maximum )(?<!max )"
    rf"(?:{_LIKELY_HEADING}|{HEADING.pattern})"
)
_CORRECTION_TOKEN = (
    r"\b(?:wait|hold on|oops|actually|correction|corrected|correcting|revised|updated|adjusted"
    r"|re-?(?:count|calculat|comput|check|sum|add|total|tall)\w{0,6}|double-?check\w{0,3}"
    r"|on second thought|mistake|miscalculat\w{0,4}|(?:grand|final)(?= (?:total|tally|score)))\b"
    r"|更正|修正|重新|不对|不對|等等"
)
CORRECTION = re.compile(rf"(?=[whoacrudmgf更修重不等])(?:{_CORRECTION_TOKEN})", re.IGNORECASE)
COMPARED = re.compile(r"\b(?:than|unlike|like|compared (?:to|with))\s[*_]*\Z", re.IGNORECASE)
RECOUNT = re.compile(r"re|correct|updated|adjusted|更正|修正|重新", re.IGNORECASE)
# What makes a text worth reading: a heading, or a written sum.
SPOKEN_TOTAL = re.compile(
    r"(?<![a-z])(?=[acfgimostw=总總一共合累综最平])(?:"
    rf"{_LIKELY_HEADING}|{HEADING.pattern}|(?<=_)total|(?<=[\d)\]}}*$分] )=|(?<=[\d)\]}}*$分])="
    r"|(?<=\n)=(?=\s?[\d*$]))",
    re.IGNORECASE,
)
CONTINUED = re.compile(
    rf"(?!{_UNIT}|\s(?:out of|compared|respectively|each|by|at|after|total|both)\b)"
    rf"(?:{CONTINUATION})",
    re.IGNORECASE,
)
_WORDS = (
    r"\b(?:total(?:s|ed|l?ing)?|scor(?:es?|ed|ing)|sum|ratings?|rated|assigned|is|are|was|were|be|gets?|got|has"
    r"|have|had|receive[sd]?|earn(?:s|ed)?|comes?|came|out|in|at|up|of|an?|the|to|with|ends?|ended"
    r"|finish(?:es|ed)?|reach(?:es|ed)?|achieve[sd]?|obtain(?:s|ed)?|collects?|accumulates?|gains?"
    r"|stands?|lands?|adds?|amounts?|equals?|only|just|now|then|so|thus|therefore|also|would|should"
    r"|final|overall|grand|weighted|combined|points?|marks?|value|number|for|it|its|all|both|each"
    r"|across|dimensions?|criteria|respectively|as|follows|that|this|one|and|while)\b"
    r"|总得?分|總得?分|得到了?|获得了?|得了?分?|分数|分數|评分|总计|合计|總計|合計|为|為|是|共|有|的|则|也|它|拿到|分别"
)
_GLUE_PART = (
    rf"\([^()\d\n]{{1,40}}\)|\( ?(?:out of|max(?:imum)?\.?|/|of|满分)?:?"
    rf" ?\d{{1,4}}(?: points?| pts|分)?\)"
    rf"|/ ?\d{{1,4}}(?= ?[:=|])|{_WORDS}|[\s:=(),.'>→⇒≈–—-]"
)
GLUE = re.compile(rf"(?:{_GLUE_PART})*+", re.IGNORECASE)
# The first summand may have a name: "Image 1: Fit 3 + Look 4 = 7".
NAMED = re.compile(rf"(?:{_GLUE_PART})*+(?:[^\d;|.\n]{{1,60}})?", re.IGNORECASE)
LEAD_IN = re.compile(
    rf"(?:{_GLUE_PART}|\b(?:images?|videos?|answers?)\b)*+|[^.,;:!?\d\n]{{0,60}}:[\s(–—-]*",
    re.IGNORECASE,
)
FOR = re.compile(
    r" ?(?:goes |go |belongs? |awarded |given )?(?:\((?:for )?|\b(?:for|to|by) |给|给了)(?:the )?",
    re.IGNORECASE,
)
AGAINST = re.compile(r"\s?(?:\bvs\b\.?|\bversus\b|\bagainst\b|\bto\b|:|比|对)\s?", re.IGNORECASE)
SEPARATED = re.compile(
    r"\)?\s?(?:\bvs\b\.?|\bversus\b|\bagainst\b|\bto\b|\band\b|比|对|和|与"
    r"|[:,/&|–—;-])?\s?(?:the )?\(?",
    re.IGNORECASE,
)
SUM_END = re.compile(
    rf"\)?{_REMARK}?\s?(?:[\n.;,!:–—-]|\Z|\b(?:and|while|but|whereas|vs)\b)", re.IGNORECASE
)
LINE_END = re.compile(rf"{_OF_MAXIMUM}?[ .;!)]*(?:\n|\Z)")
_OPENING_WORDS = (
    r"(?:(?:the|and|while|whereas|but|now|next|then|finally|for|as for|regarding"
    r"|(?:evaluation|analysis|assessment|scor(?:es?|ing)|ratings?|review|total|breakdown|calculation"
    r"|details) (?:of|for))[ ,:]{1,2}){0,4}"
)
LINE_START = re.compile(rf"\n[ >•·–—(-]*(?:\d{{1,2}}[.)] ?)?{_OPENING_WORDS}\Z", re.IGNORECASE)
CLAUSE_START = re.compile(rf"[\n.;,!?|:]['\s(-]*{_OPENING_WORDS}\Z", re.IGNORECASE)
# A cell of a table: a number or a sum, and at most a short remark.
CELL = re.compile(rf"[^\w−-]*{_VALUE}[^\d|+=×*/]{{0,40}}", re.IGNORECASE)


@dataclass(frozen=True)
class _LayoutPatterns:
    """The patterns of other layouts for one noun. A token's kind is its last group."""

    token: re.Pattern[str]
    candidate: re.Pattern[str]
    first: re.Pattern[str]
    heading: re.Pattern[str]


@lru_cache(maxsize=8)
def of_noun(noun: str) -> _LayoutPatterns:
    words = NOUNS[noun].split("|") + (["Picture", "Photo", "Img"] if noun == "Image" else [])
    name = "(?:" + "|".join(rf"\b{word}s?" if word.isascii() else word for word in words) + ")"

    def single(index: int) -> str:
        word, ordinal, digit, sign = (
            ("first", "1st", "one", "一") if index == 1 else ("second", "2nd", "two", "二")
        )
        # "Image 1", "image one", "the first image", "the second one", "第一张图", "图一".
        return (
            rf"(?:\b(?:{word}|{ordinal}) (?:{name}|one\b)|\bthe {word}(?='s | is | gets | has |:)"
            rf"|第[{index}{sign}][张張个個幅段]?的?{name}"
            rf"|{name} ?(?:no\. ?|-)?(?:{index}(?![\d%]|[.,/]\d)|{digit}\b|{sign}))(?:'s\b)?"
        )

    both = rf"\bboth\b(?: {name})?"
    candidate = rf"(?P<first>{single(1)})|(?P<second>{single(2)})|(?P<both>{both})"
    # The number of a list's item ("1. ", "2) ") is no value.
    item = r"(?P<item>(?:(?<=\n)|(?<=\n- )|\A)\d{1,2}[.)] (?=\S))"
    # No token starts within an English word. To say so first halves the time.
    token = (
        r"(?<![a-z])(?=[\da-z]|[^\x00-\x7f])(?:"
        rf"{item}|{candidate}|(?P<correction>{_CORRECTION_TOKEN})|(?P<heading>{_HEADING_TOKEN})"
        rf"|(?P<value>{_VALUE}{_TAIL}?))"
    )
    return _LayoutPatterns(
        *(re.compile(part, re.IGNORECASE) for part in (token, candidate, single(1), _HEADING_TOKEN))
    )
