"""What is looked at before LLaMA-Factory starts: the training, and what each node has of it."""

import reprlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from cot_reward.errors import UserError
from cot_reward.fingerprints import Fingerprints, is_model
from cot_reward.model_folder import fault_of_model
from cot_reward.rows.reading import read_rows
from cot_reward.sft.chat_template import check_template
from cot_reward.sft.config import data_files, describe, media_columns, read_config
from cot_reward.sft.guard import admit
from cot_reward.training.machines import media

_MARK = ".mark-of-node-0"


def check_start(arguments: Sequence[str], processes: int) -> str:
    """What the training will do, in words; `arguments` are those of `llamafactory-cli train`.

    Raises UserError for a training that must not start, see `guard.admit`.
    """
    path = Path(arguments[0])
    config = read_config(path, arguments[1:])
    model = Path(config["model_name_or_path"])
    if model.is_dir() and (fault := fault_of_model(model)):
        raise UserError(f"{model}: {fault}")
    check_template(model, config.get("template"))
    files = data_files(config)
    described = describe(config, path, files, processes)
    return f"{config['output_dir']}: {admit(config, files)}; {described}"


def facts_of(arguments: Sequence[str], rank: int) -> dict[str, str]:
    """What must be the same on all nodes: settings, model, rows, media and the output folder.

    Node 0 leaves a mark in the output folder, which the others look for; `remove_mark` takes it
    away. Without checkpoints each node may have a folder of its own. Raises UserError for rows or
    media that are missing.
    """
    path, fingerprints = Path(arguments[0]), Fingerprints()
    config = read_config(path, arguments[1:])
    model = Path(config["model_name_or_path"])
    facts = {f"{key} of {path}": str(value) for key, value in config.items()}
    if model.is_dir() and is_model(model):
        facts[f"the files of {model}"] = fingerprints.of(model)
    elif not model.is_dir():
        facts[f"the commit of {model} in the cache of the hub"] = _commit(config)
    for file in data_files(config):
        facts[str(file)] = fingerprints.of(file)
    if deepspeed := config.get("deepspeed"):
        facts[str(deepspeed)] = fingerprints.of(Path(str(deepspeed)))
    # LLaMA-Factory trains on a row without its missing image.
    root = Path(config.get("media_dir") or config.get("dataset_dir", "data"))
    facts[f"the media below {root}"] = media(_media_paths(config), root)
    if config.get("save_strategy", "steps") != "no":
        facts["a file of node 0 in the output_dir, which all nodes must share to go on from a "
              "checkpoint (without them: save_strategy='\"no\"'; in YAML \"no\" with its quotation "
              "marks)"] = _mark(config, rank)  # fmt: skip
    return facts


def remove_mark(arguments: Sequence[str]) -> None:
    """Take away what `facts_of` left in the output folder."""
    config = read_config(Path(arguments[0]), arguments[1:])
    (Path(config["output_dir"]) / _MARK).unlink(missing_ok=True)


def _commit(config: Mapping[str, Any]) -> str:
    """The commit of the start model that this machine has from the hub, or "not there"."""
    found = None
    # A path of several parts is no name of the hub.
    with suppress(ValueError):
        found = try_to_load_from_cache(
            str(config["model_name_or_path"]), "config.json", config.get("cache_dir"),
            config.get("model_revision"),
        )  # fmt: skip
    return Path(found).parent.name if isinstance(found, str) else "not there"


def _media_paths(config: Mapping[str, Any]) -> Iterator[str]:
    for file, names in media_columns(config):
        for number, row in read_rows(file):
            if isinstance(row, ValueError):
                raise UserError(f"{file}:{number}: {row}")
            for name in names:
                yield from _paths(row.get(name), f"{file}:{number}: '{name}'")


def _paths(media: Any, where: str) -> Iterator[str]:
    """As LLaMA-Factory takes media: one path, a list of paths, or a list of frames for a video."""
    if isinstance(media, list):
        for one in media:
            yield from _paths(one, where)
    elif isinstance(media, str):
        yield media
    elif media is not None:
        raise UserError(f"{where} must be a path or a list of paths, not {reprlib.repr(media)}")


def _mark(config: Mapping[str, Any], rank: int) -> str:
    mark = Path(config["output_dir"]) / _MARK
    try:
        if rank == 0:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        return mark.read_text(encoding="utf-8")
    except FileNotFoundError:
        return "not there"
    except OSError as error:
        raise UserError(f"{mark.parent}: cannot be written: {error.strerror}") from None
