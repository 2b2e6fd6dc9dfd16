"""Which model answers: its weights and prompt, compared with what a folder of responses is from."""

from collections.abc import Mapping
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

    `templates`: task -> template of the run. `served` is the value of `served_model` for the first
    server that was met; `any_weights` compares nothing. `file_root`: the folder whose files a
    server must be able to read, with --media file. `forced`: the form that it must force on all
    texts, with --structured-output.
    """

    sampling: Sampling
    templates: Mapping[str, str]
    any_weights: bool = False
    file_root: Path | None = None
    forced: Form | None = None
    served: dict[str, Any] = field(default_factory=dict)
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
        except UserError as error:
            raise ServerError(str(error)) from None
        if "neutral sampling" in found.refused:
            raise ServerError(
                f"{server.base_url} refuses {', '.join(NEUTRAL_SAMPLING)} ({found.reason}), so "
                "that its own defaults would sample the responses; --sampling-defaults server "
                "accepts them"
            )
        other = "" if self.any_weights else _difference(self.served, served)
        if other:
            raise ServerError(
                f"{server.base_url} has other weights under the name {sampling.model} than the "
                f"servers before ({other}); stop it, or leave its address out"
            )
        if self.file_root:
            await _probe_files(self.file_root, server, sampling)
        # The first server may have told nothing of its weights.
        self.served = served | {name: value for name, value in self.served.items() if value}
        if "large seeds" in found.refused:
            sampling = replace(sampling, seeds=SMALL_SEEDS)
        if self.forced:
            sampling = await with_forced_forms(server, sampling, self.forced, self.templates)
        return sampling


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
            "--media inline"
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
