"""Builders that several test files share. Plain functions: `from conftest import cot, raw_row`."""

import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cot_reward.media.sent import MediaReader
from cot_reward.records import comparison_key, conversation
from PIL import Image

REPO = Path(__file__).parent.parent
PYTHON = REPO / ".envs/dev/bin/python"


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


def raw_row(caption: str, images: Sequence[str], label: int = 1) -> dict[str, Any]:
    """A row of raw preference data, as upstream publishes it."""
    preference = f"Image {label} is better than Image {3 - label}."
    return {
        "prompt": caption,
        "images": list(images),
        "conversations": conversation("Which image is better?", preference),
    }


def judged_row(
    text: str,
    label: int = 1,
    caption: str = "a cat",
    images: tuple[str, str] = ("a.png", "b.png"),
    order: str = "given",
    **other: Any,
) -> dict[str, Any]:
    """A stage 2 row. `images` and `label` are as presented; the findings are left for the judge."""
    return {
        "conversations": conversation(f"<image><image>Judge: [{caption}]", text),
        "images": list(images),
        "videos": [],
        "id": comparison_key("image_generation", caption, (), images),
        "task": "image_generation",
        "source": "made",
        "order": order,
        "sample": 0,
        "label": label,
        "answer": 0,
        "verdict": "",
        "coherence": "",
        "finish_reason": "stop",
        "model": "model-a",
        "template_hash": "0" * 16,
    } | other


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    # Not splitlines: JSON may hold other line separators than its own.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """As lines or as a list, by the file's ending."""
    if path.suffix == ".jsonl":
        return write_lines(path, rows)
    path.write_text(json.dumps(rows, indent=1))
    return path


def picture(path: Path, colour: tuple[int, int, int] = (200, 30, 30), size: int = 48) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def encoded(path: Path, max_pixels: int, cache_dir: Path | None) -> tuple[bytes, str]:
    """What a new reader would send of a file: bytes and MIME type."""
    with MediaReader(max_pixels, cache_dir) as reader:
        return reader.read(path)[1:]


def run_in(environment: str, code: str, *arguments: Path) -> dict[str, Any]:
    """What a script prints after RESULT, in one of the project's environments."""
    done = subprocess.run(
        [REPO / ".envs" / environment / "bin/python", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPO,
        env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.split("RESULT")[1])
    return result


def save_untrained_base(folder: Path) -> Path:
    """The demo's base with random weights, saved as the trained one is."""
    import torch
    from cot_reward.demo import tiny_qwen
    from cot_reward.demo.settings import ModelSizes, WorldSettings

    template = WorldSettings(template=REPO / "configs/demo/template.txt").read_template()
    sizes = ModelSizes()
    torch.manual_seed(0)
    tokenizer = tiny_qwen.build_tokenizer(template, sizes.vocab)
    tiny_qwen.build_model(tokenizer, sizes).save_pretrained(folder)
    tiny_qwen.build_processor(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server():
    """A mock of an OpenAI-compatible server, in another process."""
    from server import MockServer

    with MockServer() as running:
        yield running


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random model for stage 3, saved."""
    from pairs import save_model

    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pictures that stage 3's rows name."""
    from pairs import save_pictures

    return save_pictures(tmp_path_factory.mktemp("media"))


@pytest.fixture
def world(tmp_path, server):
    """Comparisons on disk and the client's command line about them."""
    # world imports the builders above.
    from world import World

    return World(tmp_path, server)
