"""Runs a command that does not watch its driver itself, and ends it with all that it started when
the driver is gone. Started as a file, by any Python, with the standard library alone:

    python -I -S trainer/supervise.py WATCHED -- COMMAND…

WATCHED is the driver's process id (this process is its child), or in a container, which does not
see the driver, the run folder's heartbeat file. SIGTERM is passed on to the command. The exit code
is the command's, 128 + N where signal N ended it, 2 where it cannot be started.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

LOOK_SECONDS = 0.5
STILL_SECONDS = 30.0
"""As in trainer/stopping.py, which this file cannot import."""


def gone_when(watched: str) -> Callable[[], bool]:
    """What tells whether the driver is gone. Stillness is measured by this process's own clock."""
    if watched.isdigit():
        return lambda: os.getppid() != int(watched)
    seen, since = 0.0, time.monotonic()

    def still() -> bool:
        nonlocal seen, since
        try:
            beat = os.stat(watched).st_mtime
        except OSError:
            beat = seen
        if beat != seen:
            seen, since = beat, time.monotonic()
        return time.monotonic() - since > STILL_SECONDS

    return still


def main(arguments: list[str]) -> int:
    """Runs the command to its end; its exit code."""
    watched, _, *command = arguments
    asked: list[int] = []
    child: list[subprocess.Popen[bytes]] = []

    def stop(number: int, _frame: object) -> None:
        asked.append(number)
        if child:
            child[0].terminate()

    signal.signal(signal.SIGTERM, stop)
    gone = gone_when(watched)
    try:
        child.append(subprocess.Popen(command))
    except OSError as error:
        print(f"Error: {command[0]}: cannot be started ({error.strerror})", file=sys.stderr)
        return 2
    if asked:  # before there was a child to pass it on to
        child[0].terminate()
    while True:
        try:
            code = child[0].wait(LOOK_SECONDS)
            return code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            if gone():
                os.killpg(0, signal.SIGKILL)  # this process too


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
