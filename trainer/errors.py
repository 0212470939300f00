"""Everything that can go wrong for a known reason, and the exit code that says which.

    RmlError
    ├── InputError     2  a mistake of input: where, what was found, what is accepted, what to do
    ├── Stopped        3  somebody asked the trainer to stop; a checkpoint was written
    ├── NotANumber     4  the loss is no longer a number
    ├── OutOfMemory    5  the device or the machine has no memory left
    └── NoSpace        6  the disk is full

Exit code 0 is success, 1 a bug of ours (with a traceback). Torch-free: both halves import this.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

SHOWN_FAULTS = 10
ONE_LINE = 120
"""A message up to this length stands on one line."""


def printable(text: str) -> str:
    """A text of others (a file's name, a script's words) without what would steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


class RmlError(Exception):
    """Base of all errors that are told in one message, without a traceback."""

    exit_code = 1


class InputError(RmlError):
    """A mistake of input.

    `where` names the place (a file, an option, a key of a configuration), `found` says what is
    wrong there, `accepted` what would be right, `fix` what to do.
    """

    exit_code = 2

    def __init__(self, where: str, found: str, accepted: str = "", fix: str = "") -> None:
        self.where, self.found, self.accepted, self.fix = where, found, accepted, fix
        super().__init__(where, found, accepted, fix)

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.found}" if self.where else self.found]
        parts += [f"accepted: {self.accepted}"] if self.accepted else []
        parts += [f"to do: {self.fix}"] if self.fix else []
        line = "; ".join(parts)
        short = len(line) <= ONE_LINE and "\n" not in line
        return printable(line if short else "\n  ".join(parts))


class Stopped(RmlError):
    """The trainer was asked to stop (SIGTERM, or its driver is gone)."""

    exit_code = 3


class NotANumber(RmlError):
    """The training loss became NaN or infinite."""

    exit_code = 4


class OutOfMemory(RmlError):
    """No memory is left, on the device or on the machine."""

    exit_code = 5


class NoSpace(RmlError):
    """The disk is full."""

    exit_code = 6


CAUSES = {
    0: "done",
    1: "error in the trainer",
    InputError.exit_code: "mistake of input",
    Stopped.exit_code: "stopped on request",
    NotANumber.exit_code: "loss is not a number",
    OutOfMemory.exit_code: "out of memory",
    NoSpace.exit_code: "no space left on the disk",
}
"""What each exit code of the trainer means, in words for tables."""


def joined(faults: Sequence[InputError], what: str) -> InputError:
    """Several faults as one error: the first ten by name, and how many there are.

    `what` names the thing that has the faults, for example "the data in ./data".
    """
    if len(faults) == 1:
        return faults[0]
    shown = [f"- {fault}".replace("\n", "\n  ") for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        shown.append(f"- and {len(faults) - SHOWN_FAULTS} more")
    return InputError(what, f"{len(faults)} faults\n" + "\n".join(shown))


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'adam'?` for a misspelt name, or nothing if no known name is near."""
    by_lower = {key.lower(): key for key in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""
