"""What the machine offers to a chain: its GPUs, and the environment of its commands."""

import os
import subprocess

from cot_reward.chain.settings import Profile
from cot_reward.errors import UserError


def count_gpus(profile: Profile) -> int:
    """GPUs to use: those that are found, or as many as the profile says. Raises UserError."""
    found = len(_visible_gpus())
    if profile.gpus is None:
        return found
    if profile.gpus > found:
        raise UserError(f"the profile asks for {profile.gpus} GPUs; {found} are found")
    return profile.gpus


def _visible_gpus() -> list[str]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return []
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in lines))]


def machine_environment(gpus: int) -> dict[str, str]:
    """Variables for every command."""
    if gpus:
        return {"CUDA_VISIBLE_DEVICES": ",".join(_visible_gpus()[:gpus])}
    # Without a GPU the models are tiny: two threads mostly wait for each other, and threads that
    # spin while they wait take the cores from every other process.
    return {
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
    }  # fmt: skip


def serving_flags(profile: Profile, gpus: int) -> list[str]:
    """Flags of vLLM: copies and their split over the GPUs, then the profile's. Raises UserError."""
    if not gpus:
        return profile.serve_flags
    if profile.tensor_parallel > gpus:
        raise UserError(f"tensor_parallel is {profile.tensor_parallel}, with {gpus} GPUs in use")
    copies = profile.data_parallel or gpus // profile.tensor_parallel
    if copies * profile.tensor_parallel > gpus:
        raise UserError(
            f"tensor_parallel {profile.tensor_parallel} x data_parallel {copies} is more than the "
            f"{gpus} GPUs in use"
        )
    parallel = ["--tensor-parallel-size", str(profile.tensor_parallel)]
    return [*parallel, "--data-parallel-size", str(copies), *profile.serve_flags]
