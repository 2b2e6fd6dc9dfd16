"""A page for people: report.html, with its data inside or, where they are large, beside it."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cot_reward.report.flow import Counted
from cot_reward.report.thumbnails import Thumbnails
from cot_reward.store import write_text_file

PAGE = "report.html"
_HERE = Path(__file__).parent
# Items whose texts are one file beside the page.
_CHUNK = 50
# Texts of more characters, as JSON, lie beside the page.
_MOST_INSIDE = 1_500_000
# What stands around each of them.
_AROUND = 300


@dataclass(frozen=True)
class Table:
    """A table: the key of its title in words.yaml, what it is of, and texts as cells."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    name: str = ""
    note: str = ""
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Plot:
    """An SVG of `figures`; the key of its title in words.yaml, and what it is of."""

    title: str
    svg: str
    name: str = ""


@dataclass(frozen=True)
class Curve:
    """A PNG of a training: its name, and its address (a data: address)."""

    name: str
    address: str


@dataclass
class Content:
    """What a page shows; empty parts are left out."""

    title: str
    subtitle: str = ""
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    steps: list[Counted] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)


@cache
def words() -> dict[str, list[str]]:
    """Key -> the word in English and in Chinese."""
    found: dict[str, list[str]] = yaml.safe_load((_HERE / "words.yaml").read_text("utf-8"))
    return found


def write_page(content: Content, thumbnails: Thumbnails, out: Path) -> Path:
    """Write the page into `out`, and `report_data` beside it where there is much; its path.

    Texts of models are data in all of it: they are escaped here, and shown as text by the page.
    Raises OSError.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    out.mkdir(parents=True, exist_ok=True)
    beside = out / "report_data"
    addresses = thumbnails.write(beside, os.cpu_count() or 1)
    data: dict[str, Any] = {
        "words": words(), "models": content.models, "thumbnails": addresses, "chunk": _CHUNK,
        "folder": beside.name, "items": content.items, "pairs": content.pairs,
    }  # fmt: skip
    size = sum(len(text["text"]) + _AROUND for item in content.items for text in item["texts"])
    if size > _MOST_INSIDE:
        data["items"] = [
            {name: value for name, value in item.items() if name != "texts"}
            for item in content.items
        ]
        beside.mkdir(exist_ok=True)
        for number in range(0, len(content.items), _CHUNK):
            texts = [item["texts"] for item in content.items[number : number + _CHUNK]]
            name = f"texts-{number // _CHUNK}.js"
            call = f"reportTexts({number // _CHUNK}, {_script_json(texts)});\n"
            write_text_file(beside / name, call)
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html.j2").render(
        **{name: getattr(content, name) for name in content.__dataclass_fields__},
        words=words(), groups=sorted({item["group"] for item in content.items}),
        css=(_HERE / "page.css").read_text("utf-8"),
        script=(_HERE / "page.js").read_text("utf-8"), data=_script_json(data),
    )  # fmt: skip
    write_text_file(out / PAGE, page)
    return out / PAGE


def _script_json(value: Any) -> str:
    """JSON that may stand in a script: no "<" ends it early, and every character is ASCII."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
