"""Which model answers: its weights and prompt, compared with what a folder of responses is from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cot_reward.client import wire
from cot_reward.client.probe import SMALL_SEEDS, Probe, difference, probe
from cot_reward.client.server import AttemptError, Server, ServerError
from cot_reward.client.wire import NEUTRAL_SAMPLING, Sampling
from cot_reward.errors import UserError
from cot_reward.fingerprints import Fingerprints, is_model
from cot_reward.inference.structured import with_forced_forms
from cot_reward.media.sent import file_url
from cot_reward.records import Form
from cot_reward.tasks.prompts import check_template_of_model


@dataclass
class Acquaintance:
    """What all servers of a run must have in common: the model, its weights, its prompt.

    `templates`: task -> template of the run. `served` is the value of `served_model` for the
    servers that were met. `any_weights` compares no weights. `file_root`: the folder whose files a
    server must be able to read, with --media file. `forced`: the form that it must force on all
    texts, with --structured-output. `out` holds responses of the model `kept`, which is the
    `served_model` of its last start (empty: it says nothing).
    """

    sampling: Sampling
    templates: Mapping[str, str]
    any_weights: bool = False
    file_root: Path | None = None
    forced: Form | None = None
    out: Path = Path()
    kept: Mapping[str, Any] = field(default_factory=dict)
    served: dict[str, Any] = field(default_factory=dict)
    # Whether the servers take large seeds; None before the first one was met.
    _large_seeds: bool | None = None
    # Several servers may have loaded one folder.
    _fingerprints: Fingerprints = field(default_factory=Fingerprints)

    async def meet(self, server: Server) -> Sampling:
        """How this server can be asked. Raises ServerError for one that cannot be used."""
        sampling = self.sampling
        await server.resolve_model(sampling.model)
        root = server.roots.get(sampling.model)
        found = await probe(server, sampling)
        try:
            check_template_of_model(root, self.templates)
            served = served_model(root, found, self._fingerprints)
            if not self.any_weights:
                check_same_model(self.out, self.kept, served)
        except UserError as error:
            raise ServerError(f"{server.base_url}: {error}") from None
        if "neutral sampling" in found.refused:
            raise ServerError(
                f"{server.base_url} refuses {', '.join(NEUTRAL_SAMPLING)} ({found.reason}), so "
                "that its own defaults would sample the responses; --sampling-defaults server "
                "accepts them"
            )
        if self.file_root:
            await _probe_files(self.file_root, server, sampling)
        large_seeds = "large seeds" not in found.refused
        if not large_seeds:
            sampling = replace(sampling, seeds=SMALL_SEEDS)
        if self.forced:
            sampling = await with_forced_forms(server, sampling, self.forced, self.templates)
        self._compare(server, served, large_seeds)
        return sampling

    def _compare(self, server: Server, served: dict[str, Any], large_seeds: bool) -> None:
        """Hold a server against those before, and keep what it tells. Raises ServerError.

        Servers are met side by side: nothing is awaited between comparing and keeping.
        """
        other = "" if self.any_weights else _difference(self.served, served)
        if other:
            raise ServerError(
                f"{server.base_url} has other weights under the name {self.sampling.model} than "
                f"the servers before ({other}); stop it, or leave its address out"
            )
        if self._large_seeds not in (None, large_seeds):
            takes = "takes" if large_seeds else "does not take"
            raise ServerError(
                f"{server.base_url} {takes} seeds of more than 31 bits, unlike the servers "
                "before, so that its texts would not be theirs; leave its address out, or ask "
                "servers of one kind"
            )
        self._large_seeds = large_seeds
        # The first server may have told nothing of its weights.
        self.served = merged(served, self.served)


async def _probe_files(media_root: Path, server: Server, sampling: Sampling) -> None:
    """See whether the server reads files below the media root. Raises ServerError if not."""
    from PIL import Image

    root = media_root.resolve()
    picture = root / ".cache" / "media" / "probe.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (56, 56)).save(picture)
    content = wire.content("<image>Say yes.", [file_url(picture)])
    body = wire.body(content, sampling, count=1, seed=0, max_tokens=1)
    try:
        await server.complete(body, sampling.timeout)
    except AttemptError as fault:
        raise ServerError(
            f"--media file: the server does not read {picture.as_uri()} ({fault.detail}); start it "
            f"on a machine that has these files with --allowed-local-media-path {root}, or use "
            "--media inline",
            may_pass=fault.kind != "refused",
        ) from None


def served_model(root: str | None, probe: Probe, fingerprints: Fingerprints) -> dict[str, Any]:
    """What tells the weights apart: the folder's fingerprint where it can be seen, the probe.

    `root` is the folder that the server says it has loaded. Raises UserError for a file there that
    cannot be read.
    """
    return {
        "folder": root,
        "weights": fingerprints.of(Path(root)) if root and is_model(Path(root)) else "",
        "answer": probe.tokens,
    }


def merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What two values of `served_model` tell of the same weights: `now`, where it tells as much.

    A server may tell less than the one before it: it has no log-probs, say. Empty: it says nothing.
    """
    found = {**now, **{name: value for name, value in before.items() if not now.get(name)}}
    if before and now:
        found["answer"] = max(now["answer"], before["answer"], key=_told)
    return found


def _told(answer: Sequence[Sequence[Any]]) -> int:
    """How much an answer tells: with log-probs, by its text, nothing."""
    return len(answer[0]) if answer else 0


def _difference(previous: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """How the weights of two values of `served_model` differ, in words; "" where nothing says so.

    `previous` may be empty: it says nothing.
    """
    if not previous:
        return ""
    if previous["weights"] and current["weights"] and previous["weights"] != current["weights"]:
        return f"the files in {current['folder']} are others"
    return difference(previous["answer"], current["answer"])


def check_same_model(out: Path, previous: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises UserError when two values of `served_model` are of different weights.

    `previous` is of the last start in the folder `out`; empty: it says nothing.
    """
    if found := _difference(previous, current):
        raise UserError(
            f"{out} holds responses of other weights under the same name ({found}); use another "
            "--out, or --any-weights to go on in this folder"
        )
