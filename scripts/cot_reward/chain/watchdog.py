"""Ends the process groups of a chain that has died, also by `kill -9`.

It runs beside the chain as `python watchdog.py` and reads lines on standard input: `+GROUP` for a
process group that has started, `-GROUP` for one that has ended. The end of the input is the end of
the chain; then all groups that are left get SIGTERM, and after a while SIGKILL.
"""

import os
import signal
import sys
import time
from contextlib import suppress

# A server needs some seconds to end its workers, and a client to save its answers.
GRACE_SECONDS = 20.0


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end_groups(groups: set[int], grace: float = GRACE_SECONDS) -> None:
    """Ask all processes of the groups to end; kill what is left after `grace` seconds."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 1.0)):
        for group in groups:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)
        deadline = time.monotonic() + seconds
        while any(map(_is_alive, groups)) and time.monotonic() < deadline:
            time.sleep(0.1)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    end_groups(groups)


if __name__ == "__main__":
    main()
