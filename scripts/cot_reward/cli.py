"""The console command `cot-reward COMMAND [FLAG ...]`: the scripts by shorter names.

A script runs as it is, with its own flags. In a checkout it lies beside the package, and an
installed package has it inside (pyproject.toml).
"""

import sys
from pathlib import Path

from cot_reward.errors import UserError, nearest, run_script

# Command -> its script, what it does, and the extra of pyproject.toml whose packages it needs.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "infer": ("image_stream_gpt.py", "ask a server for chains of thought and judge them", ""),
    "score": ("score.py", "rank candidates of many prompts, the best of each", ""),
    "merge": ("merge_json.py", "join right and wrong chains of thought into pairs", "data"),
    "audit": ("audit_pairs.py", "tell what a file of pairs gives away", "data"),
    "evaluate": ("evaluate.py", "score a served model on a benchmark", "data"),
    "dpo": (
        "DPO_VL.py",
        "stage 3; on several GPUs: accelerate launch -m cot_reward.cli dpo",
        "train",
    ),
    "serve": ("serve_reward.py", "an HTTP service over a served model", "service"),
}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: cot-reward COMMAND [FLAG ...]   (cot-reward COMMAND --help: its flags)\n")
        for command, (_, what, _) in COMMANDS.items():
            print(f"  {command:10}{what}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"no command is called '{name}'.{nearest(name, COMMANDS)}")
    script, _, extra = COMMANDS[name]
    sys.argv = [f"cot-reward {name}", *sys.argv[2:]]
    try:
        file = _file(script)
        code = compile(file.read_bytes(), file, "exec")
        # As `runpy` does it, which would put the script's name in the place of the command's.
        exec(code, {"__name__": "__main__", "__file__": str(file)})
    except ModuleNotFoundError as error:
        # A module of this package that is missing is a fault of ours.
        if not error.name or error.name.partition(".")[0] == "cot_reward":
            raise
        wanted = f"pip install 'cot-reward[{extra}]'" if extra else "pip install cot-reward"
        raise UserError(
            f"cot-reward {name} needs the package {error.name}, which is not installed; {wanted} "
            "brings it"
        ) from None
    return 0


def _file(script: str) -> Path:
    package = Path(__file__).parent
    for folder in (package / "scripts", package.parent):
        if (folder / script).is_file():
            return folder / script
    raise UserError(f"this installation has no {script}; run it in a checkout of the project")


def console() -> None:
    """The entry point."""
    run_script(main)


if __name__ == "__main__":
    console()
