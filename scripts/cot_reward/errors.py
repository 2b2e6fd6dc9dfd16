"""A mistake that the user can mend: its exception, its message, and the exit code that follows."""

import difflib
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn


class UserError(Exception):
    """A mistake that the user can mend; shown as one message, without a traceback."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """' Did you mean ...?' with the closest valid name, or '' when none is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def run_script(main: Callable[[], int]) -> NoReturn:
    """Call `main()` and exit with what it returns; a UserError becomes one message and exit 2."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`); there is nothing left to tell it.
        sys.stderr.close()
        code = 1
    sys.exit(code)
