"""What a step of the chain is: one command, what it is made from, and where its result stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Stands in a command for the address of the server, or several, known once it runs.
URL = "{base_url}"


@dataclass(frozen=True)
class Training:
    """A training of LLaMA-Factory: its name, YAML, data set, model to start from and result."""

    name: str
    title: str
    config: Path
    export: Path | None
    data_set: str
    rows: Path
    media_root: Path
    start: Path
    inputs: tuple[Path, ...]

    def trained(self, run: Path) -> Path:
        """The folder that later steps read: the merged one where an adapter is trained."""
        return run / (f"{self.name}_merged" if self.export else self.name)


@dataclass(frozen=True)
class Step:
    """One command of the chain.

    name: as in `--only`; with seeds, SEED_FOLDER/NAME
    command: argv from the project's root; URL stands for the server's address
    inputs: files and model folders that the result depends on
    flags: settings of the command that the result depends on
    out: the folder that the command fills
    done_file: a file that stands there once the command has ended well
    added_inputs, added_flags: what may change without a new start: an inference only asks for more
    model: the model that must be served meanwhile
    trains: what trains here (a trainer wants the machine's memory: no server beside it)
    sft: the training, where LLaMA-Factory trains
    always: the step runs at every start
    exit_codes: exit codes with which the command has done its work
    only_after: comparisons of models; the step is needed only where each has found a gain
    """

    name: str
    title: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    out: Path | None = None
    done_file: Path | None = None
    added_inputs: tuple[Path, ...] = ()
    added_flags: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    model: Path | None = None
    trains: str = ""
    sft: Training | None = None
    always: bool = False
    exit_codes: tuple[int, ...] = (0,)
    only_after: tuple["Step", ...] = ()

    def command_at(self, urls: Sequence[str]) -> tuple[str, ...]:
        """The command with the addresses of the servers."""
        return tuple(word for part in self.command for word in (urls if part == URL else [part]))
