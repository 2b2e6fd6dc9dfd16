"""What `--help` of a trainer prints. Nothing here imports torch or TRL: it takes a moment."""

from typing import Any

from cot_reward.settings import parser_for

HELP_ALL = "--help-all"


def help_text(settings: type[Any], config: str, description: str = "") -> str:
    """The flags of the dataclass `settings`, and how to see those of TRL's class `config`."""
    parser = parser_for((settings,), description)
    parser.add_argument(HELP_ALL, action="store_true", help="show these flags and TRL's")
    parser.epilog = (
        f"Every flag of TRL's {config} and ModelConfig works too, here and as a key in YAML: "
        f"{HELP_ALL}\nlists them (900 lines). Every boolean also takes a value, as in "
        "--merge_adapter true."
    )
    return parser.format_help()
