"""Which files a model is: the commit of the Hub, and a digest that tells them from others."""

from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path

from transformers.utils.hub import cached_file, extract_commit_hash

from cot_reward.errors import UserError

# The files, besides the weights, that a model's log-probs depend on.
_CONFIGURATION_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
# In the order in which transformers looks for them; it loads one kind only.
_WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
_SHOWN = 80


@dataclass(frozen=True)
class ModelFiles:
    """Which files a model is: the commit of the hub, or the revision as given; and their digest."""

    revision: str | None
    digest: str

    def __str__(self) -> str:
        return self.digest[:_SHOWN]


def model_files(name: str, revision: str | None) -> ModelFiles:
    """The files that a folder, or a model of the hub at this revision, has at present.

    A branch of the hub moves; a commit does not. Raises UserError when there is no such model.
    """
    if Path(name).is_dir():
        return ModelFiles(revision, model_digest(Path(name)))
    try:
        found = str(cached_file(name, "config.json", revision=revision))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model_name_or_path {name}: cannot be loaded: {reason}") from None
    commit = extract_commit_hash(found, None)
    if commit is None:
        return ModelFiles(revision, model_digest(Path(found).parent))
    return ModelFiles(commit, f"{name}@{commit}")


def model_digest(folder: Path) -> str:
    """The sha256 of a model folder's weights, configuration, tokenizer and processor."""
    files = [folder / name for name in _CONFIGURATION_FILES]
    kinds = (sorted(folder.glob(pattern)) for pattern in _WEIGHT_PATTERNS)
    weights: list[Path] = next(filter(None, kinds), [])
    digest = sha256()
    for path in [*files, *weights]:
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name}:{file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
