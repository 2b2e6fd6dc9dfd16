"""What a folder must have to be loaded as a model, told without loading it.

Nothing here imports torch or transformers, so that every stage can ask before it starts.
"""

import json
import struct
from pathlib import Path
from typing import Any

from cot_reward.store import read_json

# In the order in which transformers looks for them.
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = "model.safetensors"
_HEAD = "lm_head.weight"


def fault_of_model(folder: Path) -> str:
    """Why the folder cannot be loaded as a model, or not with its own weights; "" when it can.

    An adapter alone is no model, weights can be missing, and a head can be neither saved nor tied:
    transformers 5.6, which stages 1 and 2 use, then fills `lm_head` with random numbers, and only
    warns.
    """
    config = read_json(folder / "config.json")
    if (folder / "adapter_config.json").is_file():
        return (
            "holds a LoRA adapter (adapter_config.json), not a model of its own: merge it into its "
            "base first (llamafactory-cli export; of stage 3: --merge_adapter true)"
        )
    if not config:
        return "has no config.json that can be read: it is no folder of a model"
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not any(path.name != "training_args.bin" for path in weights):
        return "has no weights (*.safetensors): its download or its training is not complete"
    names, files = _weights(folder)
    if missing := sorted(name for name in files if not (folder / name).is_file()):
        return f"lacks {missing[0]}, which its index of weights names: copy the folder again"
    if names and not any(name.endswith(_HEAD) for name in names):
        return _fault_of_tie(config)
    return ""


def _fault_of_tie(config: dict[str, Any]) -> str:
    """What is wrong with the tie of a model that has no weights of its own for `lm_head`."""
    # A model without this head (a classifier, say) has nothing to tie.
    generates = any(
        "Generation" in name or "LM" in name for name in config.get("architectures", [])
    )
    text_config = config.get("text_config")
    in_text = isinstance(text_config, dict) and text_config.get("tie_word_embeddings")
    if not generates or config.get("tie_word_embeddings"):
        return ""
    if not in_text:
        # Without a word on it, families differ in what is the default.
        if config.get("tie_word_embeddings") is None:
            return ""
        return (
            "has no weights for lm_head, and its config.json says that they are not those of the "
            "embeddings (tie_word_embeddings): its weights are not complete"
        )
    return (
        "has no weights for lm_head, and its config.json says only inside text_config that they "
        "are those of the embeddings: some versions of transformers would take random numbers; "
        'write "tie_word_embeddings": true at the top level of config.json, too'
    )


def _weights(folder: Path) -> tuple[set[str], set[str]]:
    """The names of the weights and the files that hold them; empty where they cannot be told."""
    if (folder / _SINGLE).is_file():
        return _names_of_safetensors(folder / _SINGLE), {_SINGLE}
    for index in _INDEXES:
        shards = read_json(folder / index).get("weight_map")
        if isinstance(shards, dict):
            return set(shards), set(shards.values())
    return set(), set()


def _names_of_safetensors(path: Path) -> set[str]:
    """The names in the head of the file: 8 bytes with its length, then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                return set()
            return set(json.loads(file.read(length))) - {"__metadata__"}
    except (OSError, ValueError, struct.error):
        return set()
