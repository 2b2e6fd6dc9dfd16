"""Before gigabytes are fetched: does this machine have the Python and the driver of the pins?

    python3 requirements/check_machine.py serve|serve-cpu [no]

The Makefile runs it, with the system's own Python. The second argument leaves the driver unchecked.
"""

import importlib.util
import platform
import subprocess
import sys

# torch and vLLM of the pins are built for this CUDA, which runs on this driver and later ones.
CUDA = "13.0"
LEAST_DRIVER = 580

_QUERY = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]


def fault_of_python():
    """What is wrong with the Python that runs this; "" if nothing is."""
    if sys.version_info[:2] != (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        return (
            f"Python 3.11 is needed, and {sys.executable} is {found}. Another Python: make "
            "PYTHON=/path/to/python3.11 ... To get one without root: python3 -m venv ~/uv && "
            "~/uv/bin/pip install uv && ~/uv/bin/uv python install 3.11, then make "
            'PYTHON="$(~/uv/bin/uv python find 3.11)" ...'
        )
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        return (
            f"{sys.executable} cannot make environments, since its module ensurepip is missing "
            "(Debian, Ubuntu: apt install python3.11-venv)"
        )
    return ""


def drivers():
    """The driver's version for each GPU, or the first line of why there is none."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return [], "there is no nvidia-smi"
    except (OSError, subprocess.SubprocessError) as error:
        return [], f"nvidia-smi does not run: {error}"
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode or not lines:
        return [], f"nvidia-smi says: {lines[0] if lines else done.returncode}"
    return lines, ""


def fault_of_driver(serve, check_driver):
    """What is wrong with the GPU's driver; "" if nothing is. Prints what may be meant otherwise."""
    found, none = drivers()
    if none and serve == "serve":
        print(
            f"no GPU is seen here ({none}). Where this will run, nvidia-smi must show driver "
            f"{LEAST_DRIVER} or later."
        )
    elif none:
        print(
            f"no GPU is seen here ({none}): vLLM's build for CPUs is installed. On a login node of "
            "GPU machines: make SERVE=serve envs"
        )
    old = [version for version in found if not _is_enough(version)]
    if not old or not check_driver or serve == "serve-cpu":
        return ""
    return (
        f"the driver of this machine's GPU is {old[0]}; torch and vLLM are built for CUDA {CUDA}, "
        f"which needs {LEAST_DRIVER} or later. Ask for a newer driver (on data-centre GPUs the "
        "package cuda-compat-13-0 does, too). To go on without this check: make DRIVER_CHECK=no "
        "envs; to use the CPU only: make SERVE=serve-cpu envs"
    )


def _is_enough(version):
    major = version.split(".")[0]
    return not major.isdigit() or int(major) >= LEAST_DRIVER


def main(serve, driver_check=""):
    fault = fault_of_python()
    if not fault and serve not in ("serve", "serve-cpu"):
        fault = f"SERVE={serve}: is neither serve (vLLM on GPUs) nor serve-cpu"
    if not fault and platform.system() != "Linux":
        fault = f"vLLM and the pins are for Linux; this is {platform.system()}"
    fault = fault or fault_of_driver(serve, driver_check != "no")
    if fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
