"""The demo's tiny model: every environment reads the same tokens, pictures and weights from it."""

import json
from pathlib import Path

import pytest
import torch
from cot_reward.demo import pretrain, tiny_qwen, world
from cot_reward.demo.settings import MODEL_FAMILIES, ModelSizes, WorldSettings
from cot_reward.sft.chat_template import TEMPLATES
from cot_reward.tasks import prompts
from helpers.environments import REPO, run_in
from helpers.models import save_untrained_base

SETTINGS = WorldSettings(template=REPO / "configs/demo/template.txt", heldout=4)

# Runs in each environment. argv: the checkpoint, and a JSON file of texts and pictures.
READ = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

folder, request = sys.argv[1], json.load(open(sys.argv[2]))
processor = AutoProcessor.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
images = [Image.open(path) for path in request["images"]]
content = [{"type": "image"}] * 2 + [{"type": "text", "text": request["prompt"]}]
chat = [{"role": "user", "content": content}]
text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
batch = processor(text=[text], images=images, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits[0, -1]
out = {
    "texts": [tokenizer(text)["input_ids"] for text in request["texts"]],
    "decoded": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in request["texts"]],
    "prompt": batch["input_ids"][0].tolist(),
    "grid": batch["image_grid_thw"].tolist(),
    "pixels": batch["pixel_values"].double().sum(1).tolist(),
    "logits": logits.tolist(),
    "eos": model.generation_config.eos_token_id,
    "special": [tokenizer.eos_token, tokenizer.pad_token],
}
print("RESULT" + json.dumps(out))
"""

# The same tokens from LLaMA-Factory's own loader, template and picture preprocessing.
READ_SFT = """
import json, sys
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model import load_tokenizer

folder, request, name = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3]
module = load_tokenizer(ModelArguments(model_name_or_path=folder))
tokenizer, processor = module["tokenizer"], module["processor"]
template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))
messages = [
    {"role": "user", "content": "<image><image>" + request["prompt"]},
    {"role": "assistant", "content": request["texts"][0]},
]
plugin = template.mm_plugin
messages = plugin.process_messages(messages, request["images"], [], [], processor)
prompt, answer = template.encode_oneturn(tokenizer, messages)
seen = plugin.get_mm_inputs(request["images"], [], [], [2], [0], [], [prompt], processor)
out = {
    "prompt": prompt,
    "answer": answer,
    "grid": seen["image_grid_thw"].tolist(),
    "pixels": seen["pixel_values"].double().sum(1).tolist(),
}
print("RESULT" + json.dumps(out))
"""


@pytest.fixture(scope="module", params=list(tiny_qwen.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, family: str) -> Path:
    return save_untrained_base(tmp_path_factory.mktemp("base"), family=family)


@pytest.fixture(scope="module")
def request_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("request")
    scene = world.scenes("heldout", SETTINGS)[0]
    images = []
    for name, image in world.pictures(scene, SETTINGS):
        image.save(folder / name)
        images.append(str(folder / name))
    texts = [
        world.teacher_cot(scene),
        "  spaces, 12.5 numbers\n\n\tand äöü 图像 <|im_end|>",
        "Image 1's better\r\n",
        "",
    ]
    prompt = prompts.fill(SETTINGS.read_template(), {"caption": scene.caption})
    path = folder / "request.json"
    path.write_text(json.dumps({"texts": texts, "prompt": prompt, "images": images}))
    return path


@pytest.mark.slow
def test_all_environments_read_the_same(checkpoint: Path, request_file: Path, family: str) -> None:
    main = run_in("main", READ, checkpoint, request_file)
    for name in ("sft", "serve-cpu"):
        other = run_in(name, READ, checkpoint, request_file)
        # Sums of floats may differ in the last digits between builds.
        for key in ("pixels", "logits"):
            torch.testing.assert_close(
                torch.tensor(other.pop(key)), torch.tensor(main[key]), atol=1e-3, rtol=1e-4
            )
        assert other == {key: main[key] for key in other}
    assert main["grid"] == [[1, 4, 4]] * 2
    assert main["special"] == ["<|im_end|>", "<|endoftext|>"]
    texts = json.loads(request_file.read_text())["texts"]
    assert main["decoded"] == texts
    # The tokenizer before it is saved and loaded, with which the base is trained.
    fresh = tiny_qwen.build_tokenizer(SETTINGS.read_template(), ModelSizes().vocab, family)
    assert [fresh(text)["input_ids"] for text in texts] == main["texts"]
    encoder = pretrain.Encoder(tiny_qwen.build_processor(fresh, family), family)
    prompt = encoder.prompt("<image><image>" + json.loads(request_file.read_text())["prompt"])
    assert encoder.ids(prompt) == main["prompt"]


@pytest.mark.slow
def test_llamafactory_sees_the_same_tokens_and_pictures(
    checkpoint: Path, request_file: Path, family: str
) -> None:
    main = run_in("main", READ, checkpoint, request_file)
    sft = run_in("sft", READ_SFT, checkpoint, request_file, TEMPLATES[family][0])
    assert sft["prompt"] == main["prompt"]
    end = main["eos"][0]
    assert sft["answer"][: sft["answer"].index(end)] == main["texts"][0]
    assert sft["grid"] == main["grid"]
    torch.testing.assert_close(
        torch.tensor(sft["pixels"]), torch.tensor(main["pixels"]), atol=1e-3, rtol=1e-4
    )


def test_a_cot_is_short() -> None:
    tokenizer = tiny_qwen.build_tokenizer(SETTINGS.read_template(), ModelSizes().vocab)
    for scene in world.scenes("heldout", SETTINGS):
        assert len(tokenizer(world.teacher_cot(scene))["input_ids"]) <= 110


def test_the_settings_know_every_family() -> None:
    assert tuple(tiny_qwen.FAMILIES) == MODEL_FAMILIES
