"""Which model answers: its weights and prompt, compared with what a folder of responses is from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cot_reward.client.probe import Probe, difference
from cot_reward.errors import UserError
from cot_reward.fingerprints import Fingerprints, is_model


def served_model(root: str | None, probe: Probe) -> dict[str, Any]:
    """What tells the weights apart: the folder's fingerprint where it can be seen, the probe.

    `root` is the folder that the server says it has loaded. Raises UserError for a file there that
    cannot be read.
    """
    return {
        "folder": root,
        "weights": Fingerprints().of(Path(root)) if root and is_model(Path(root)) else "",
        "answer": probe.tokens,
    }


def check_same_model(out: Path, previous: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises UserError when two values of `served_model` are of different weights.

    `previous` is of the last start in the folder `out`; empty: it says nothing.
    """
    if not previous:
        return
    found = difference(previous["answer"], current["answer"])
    if previous["weights"] and current["weights"] and previous["weights"] != current["weights"]:
        found = f"the files in {current['folder']} are others"
    if found:
        raise UserError(
            f"{out} holds responses of other weights under the same name ({found}); use another "
            "--out, or --any-weights to go on in this folder"
        )
