"""A checkpoint handed from one environment to the next keeps its tokens, pictures and weights.

The order is that of the chain: the demo's base (main), LLaMA-Factory (sft), vLLM (serve-cpu), TRL
(main), vLLM (serve-cpu). A comparison must become the same token ids in each, with images below and
above the pixel bound.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.environments import run_in
from helpers.models import save_untrained_base
from helpers.pictures import encoded
from PIL import Image

BOUND = 262144
PROMPT = "Text Caption: [a red circle, 12.5 cm]"

# argv: checkpoint, request, output folder. Loads the checkpoint, reads the comparison, saves again.
PASS_ON = """
import json, sys
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

folder, request, out = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3]
processor = AutoProcessor.from_pretrained(folder)
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
content = [{"type": "image"}] * 2 + [{"type": "text", "text": request["prompt"]}]
text = processor.apply_chat_template(
    [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
)
images = [Image.open(path).convert("RGB") for path in request["bounded"]]
batch = processor(text=[text], images=images, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits[0, -1].tolist()
model.save_pretrained(out)
processor.save_pretrained(out)
result = {"ids": batch["input_ids"][0].tolist(), "grid": batch["image_grid_thw"].tolist()}
print("RESULT" + json.dumps(result | {"logits": logits}))
"""

# The same with LLaMA-Factory's own loader, template and image preprocessing.
PASS_ON_SFT = """
import json, sys
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, FinetuningArguments, ModelArguments
from llamafactory.model import load_model, load_tokenizer

folder, request, out = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3]
arguments = ModelArguments(model_name_or_path=folder, image_max_pixels=request["max_pixels"])
module = load_tokenizer(arguments)
tokenizer, processor = module["tokenizer"], module["processor"]
template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="qwen2_vl"))
messages = [
    {"role": "user", "content": "<image><image>" + request["prompt"]},
    {"role": "assistant", "content": "x"},
]
images = request["originals"]
messages = template.mm_plugin.process_messages(messages, images, [], [], processor)
ids, _ = template.encode_oneturn(tokenizer, messages)
seen = template.mm_plugin.get_mm_inputs(images, [], [], [2], [0], [], [ids], processor)
model = load_model(tokenizer, arguments, FinetuningArguments(stage="sft", finetuning_type="full"))
model.save_pretrained(out)
processor.save_pretrained(out)
print("RESULT" + json.dumps({"ids": ids, "grid": seen["image_grid_thw"].tolist()}))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(params=[((56, 56), (112, 84)), ((700, 500), (1000, 700))], ids=["below", "above"])
def comparison(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A request file: two pictures, the same two as the client sends them, and a prompt."""
    rng = np.random.default_rng(0)
    originals, bounded = [], []
    for i, (width, height) in enumerate(request.param):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        data, _ = encoded(path, BOUND, tmp_path / "cache")
        sent = tmp_path / f"{i}_sent.png"
        sent.write_bytes(data)
        originals.append(str(path))
        bounded.append(str(sent))
    asked: dict[str, Any] = {"originals": originals, "bounded": bounded}
    path = tmp_path / "request.json"
    path.write_text(json.dumps(asked | {"prompt": PROMPT, "max_pixels": BOUND}))
    return path


@pytest.mark.slow
def test_each_environment_saves_what_the_next_one_loads(
    base: Path, comparison: Path, tmp_path: Path
) -> None:
    first = run_in("main", PASS_ON, base, comparison, tmp_path / "from_main")
    hops = [
        ("sft", PASS_ON_SFT, "from_main", "from_sft"),
        ("serve-cpu", PASS_ON, "from_sft", "from_serve"),
        ("main", PASS_ON, "from_sft", "from_dpo"),
        ("serve-cpu", PASS_ON, "from_dpo", "at_the_end"),
    ]
    for environment, code, source, target in hops:
        seen = run_in(environment, code, tmp_path / source, comparison, tmp_path / target)
        assert seen["grid"] == first["grid"], environment
        assert seen["ids"] == first["ids"], environment
        if "logits" in seen:
            torch.testing.assert_close(
                torch.tensor(seen["logits"]), torch.tensor(first["logits"]), atol=1e-3, rtol=1e-3
            )
