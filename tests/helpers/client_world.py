"""A media root with images, a data file, and inference with them as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from cot_reward import settings
from cot_reward.inference.run import infer
from cot_reward.inference.settings import InferenceSettings
from cot_reward.records import comparison_key

from helpers.environments import REPO
from helpers.pictures import picture
from helpers.rows import raw_row, read_lines
from helpers.server import MockServer

SCRIPT = [sys.executable, "scripts/image_stream_gpt.py"]


class World:
    """`count` comparisons on disk, and the command line of inference about them."""

    def __init__(self, folder: Path, server: MockServer, count: int = 3) -> None:
        self.media, self.out, self.server = folder / "media", folder / "out", server
        self.data = folder / "data.json"
        self.rows = []
        for number in range(count):
            names = [f"{number}a.png", f"{number}b.png"]
            for shade, name in enumerate(names):
                picture(self.media / "images" / name, (number, 40 * shade, 90))
            self.rows.append(raw_row(f"caption {number}", names, label=1 + number % 2))
        (folder / "empty.yaml").write_text("")
        self.base = [
            "--config", folder / "empty.yaml", "--data", self.data, "--media-root", self.media,
            "--image-root", self.media / "images", "--out", self.out,
            "--max-bad-rows", 1, "--max-failed", 1,
        ]  # fmt: skip
        server.configure()

    def command(self, *flags: object) -> list[str]:
        text = json.dumps(self.rows)
        # The same data keep their time, by which infer_ray.py knows them.
        if not self.data.exists() or self.data.read_text() != text:
            self.data.write_text(text)
        # The last flag of a name wins; of a list, all values count.
        given = [str(flag) for flag in (*self.base, *flags)]
        named = {"--base-url", "--servers"} & set(given)
        return [*SCRIPT, *given, *([] if named else ["--base-url", self.server.url])]

    def run(self, *flags: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*flags), cwd=REPO, capture_output=True, text=True, check=False, timeout=120
        )

    def call(self, *flags: object) -> int:
        """As `run`, in this process: a process takes a second to start. Raises UserError."""
        argv = self.command(*flags)[len(SCRIPT) :]
        return infer(settings.parse(InferenceSettings, "", argv=argv), api_key="none")

    def start(self, *flags: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*flags), cwd=REPO, text=True, env=os.environ | (env or {}),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def read(self, name: str) -> list[dict]:
        return read_lines(self.out / f"{name}.jsonl")

    @property
    def judged(self) -> list[dict]:
        return [row for name in ("correct", "incorrect", "unusable") for row in self.read(name)]

    @property
    def summary(self) -> dict:
        return json.loads((self.out / "summary.json").read_text())

    def key(self, number: int) -> str:
        names = [f"images/{name}" for name in self.rows[number]["images"]]
        return comparison_key("image_generation", self.rows[number]["prompt"], (), names)


def unit(row: dict) -> tuple[str, str, int]:
    return row.get("id", row.get("key")), row["order"], row["sample"]
