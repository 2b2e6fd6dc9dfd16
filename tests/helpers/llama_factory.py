"""LLaMA-Factory's own image preprocessing, run in its environment: what `bound` must equal."""

import hashlib
import inspect
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from helpers.environments import REPO
from helpers.pictures import noise

SFT_PYTHON = REPO / ".envs/sft/bin/python"


@dataclass
class Outline:
    """An image without pixels, where only the size matters: thousands of them take no time."""

    width: int
    height: int
    mode: str = "RGB"
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def resize(self, size: tuple[int, int]) -> "Outline":
        if min(size) < 1:
            raise ValueError("height and width must be > 0")
        return Outline(*size)

    def copy(self) -> "Outline":
        return Outline(*self.size)


def digest(image: Image.Image) -> list[Any]:
    return [image.mode, *image.size, hashlib.sha256(image.tobytes()).hexdigest()]


# A program that answers each line of questions with one line of answers, both JSON.
SERVER = (
    """
import hashlib, json, random, sys
from dataclasses import dataclass, field
from typing import Any
from PIL import Image
from llamafactory.data.mm_plugin import Qwen2VLPlugin

"""
    + inspect.getsource(Outline)
    + inspect.getsource(noise)
    + inspect.getsource(digest)
    + """
plugin = Qwen2VLPlugin(image_token="<|image_pad|>", video_token=None, audio_token=None)

def answer(kind, args, max_pixels):
    if kind == "file":
        return digest(plugin._regularize_images(
            args, image_max_pixels=max_pixels, image_min_pixels=1024)["images"][0])
    image = Outline(*args) if kind == "outline" else noise(*args)
    try:
        # The default of image_min_pixels, in hparams/model_args.py.
        image = plugin._preprocess_image(image, image_max_pixels=max_pixels, image_min_pixels=1024)
    except ValueError:
        return None
    return [image.mode, *image.size] if kind == "outline" else digest(image)

out, sys.stdout = sys.stdout, sys.stderr
print("ready", file=out, flush=True)
for line in sys.stdin:
    print(json.dumps([answer(*question) for question in json.loads(line)]), file=out, flush=True)
"""
)


class LlamaFactory:
    """The running program."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, questions: list[Any]) -> list[Any]:
        """One answer for each (kind, arguments, max_pixels); the kinds stand in SERVER."""
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(questions), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@contextmanager
def running_llama_factory() -> Iterator[LlamaFactory]:
    assert SFT_PYTHON.exists(), f"{SFT_PYTHON} is missing: make envs"
    with subprocess.Popen(
        [SFT_PYTHON, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    ) as process:
        assert process.stdout
        while (line := process.stdout.readline()) != "ready\n":
            assert line, "LLaMA-Factory did not start"
        yield LlamaFactory(process)
        assert process.stdin
        process.stdin.close()
