"""How a trial ended, in Optuna's states and in words."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from trainer.errors import CAUSES, InputError, OutOfMemory, Stopped
from trainer.events import LOG_FILE, RESULT_FILE

LAST_LINES = 15


def reason_of(run_folder: Path, exit_code: int) -> str:
    """Why a run ended with an exit code: its own words where it left some, else the code's."""
    try:
        result = json.loads((run_folder / RESULT_FILE).read_text(encoding="utf-8"))
        if result["exit_code"] == exit_code:
            return str(result["reason"])
    except (OSError, ValueError, KeyError):
        pass
    if exit_code == 128 + signal.SIGKILL:
        return "killed (signal 9): most often the kernel, because no memory was left"
    if exit_code > 128:
        return f"ended by signal {exit_code - 128}"
    return CAUSES.get(exit_code, f"exit code {exit_code}")


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
            text = (run_folder / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        lines += [line for line in text.splitlines()[-most:] if line not in lines]
    return "\n".join(lines[-2 * most :])
