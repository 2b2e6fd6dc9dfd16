"""Mistakes that the user can correct: the exception, its message and the exit code of a script."""

import difflib
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn


class UserError(Exception):
    """A mistake that the user can correct; a script shows one message, without a traceback."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """' Did you mean ...?' with the closest valid name; '' when no name is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def run_script(main: Callable[[], int]) -> NoReturn:
    """Call `main()` and exit with its return value; a UserError becomes one message and exit 2."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader of our output has ended (`| head`); no further error is worth printing.
        sys.stderr.close()
        code = 1
    sys.exit(code)
