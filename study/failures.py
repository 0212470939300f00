"""How a trial ended, in Optuna's states and in words."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path

from trainer.errors import CAUSES, InputError, OutOfMemory, Stopped, printable
from trainer.events import LOG_FILE, RESULT_FILE
from trainer.files import read_text

LAST_LINES = 15
MOST_CHARACTERS = 200


def reason_of(run_folder: Path, exit_code: int) -> str:
    """Why a run ended with an exit code: its own words where it left some, else the code's."""
    try:
        result = json.loads(read_text(run_folder / RESULT_FILE))
        if result["exit_code"] == exit_code:
            return printable(str(result["reason"]))
    except (OSError, ValueError, LookupError, TypeError):
        pass
    if exit_code == 128 + signal.SIGKILL:
        return "killed (signal 9): most often the kernel, because no memory was left"
    if exit_code > 128:
        return f"ended by signal {exit_code - 128}"
    return CAUSES.get(exit_code, f"exit code {exit_code}")


def reason_of_command(run_folder: Path, exit_code: int) -> str:
    """Why a command of the user ended with an exit code: the last line that it said, behind what
    the code means."""
    meaning = f"the command ended with exit code {exit_code}"
    if exit_code > 128:
        meaning = reason_of(run_folder, exit_code)
    elif exit_code > 1 and exit_code in CAUSES:
        meaning = f"{CAUSES[exit_code]}, says exit code {exit_code} of the command"
    told = last_line(run_folder)
    return f"{meaning}: {told}" if told else meaning


def last_line(run_folder: Path) -> str:
    """The last line that a run said, errors before anything else; empty where it said nothing."""
    for name in ("stderr.txt", LOG_FILE):
        with suppress(OSError):
            text = read_text(run_folder / name)
            if lines := [line.strip() for line in text.splitlines() if line.strip()]:
                return printable(lines[-1][:MOST_CHARACTERS])
    return ""


def cause_of(exit_code: int, reason: str) -> str:
    """One line for tables."""
    if exit_code == 128 + signal.SIGKILL:
        return f"{CAUSES[OutOfMemory.exit_code]}: {reason}"
    first = reason.splitlines()[0] if reason else ""
    cause = CAUSES.get(exit_code)
    return f"{cause}: {first}" if cause and not first.startswith(cause) else first or str(cause)


def is_users_mistake(exit_code: int) -> bool:
    """Every other trial would end in the same way."""
    return exit_code == InputError.exit_code


def was_cut_off(exit_code: int) -> bool:
    """Somebody else stopped it: it has not ended by itself and begins again."""
    return exit_code in (Stopped.exit_code, 128 + signal.SIGTERM)


def last_lines(run_folder: Path, most: int = LAST_LINES) -> str:
    """The end of a trial's log, and what it printed as errors beside."""
    lines: list[str] = []
    for name in (LOG_FILE, "stderr.txt"):
        try:
            text = read_text(run_folder / name)
        except OSError:
            continue
        lines += [line for line in text.splitlines()[-most:] if line not in lines]
    return printable("\n".join(lines[-2 * most :]))
