"""Who owns a study or a trial: a process, named so that another process with its id is not it.

An owner is {"host": name of the machine, "pid": number, "start_time": text}, ready for JSON.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def start_time(pid: int) -> str | None:
    """When the process started, in the system's own words; None if it is not there (any more).

    A process that has ended and that its parent has not asked about (a zombie) is not there.
    """
    if sys.platform.startswith("linux"):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        # Field 2 is the command in brackets and may itself have brackets and blanks.
        fields = stat[stat.rindex(")") + 1 :].split()
        state, ticks_since_boot = fields[0], fields[22 - 3]
        return None if state in "ZX" else ticks_since_boot
    told = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
    )
    return told.stdout.strip() or None


def of(pid: int) -> dict[str, Any]:
    """The process `pid` of this host as an owner."""
    return {"host": socket.gethostname(), "pid": pid, "start_time": start_time(pid) or ""}


def me() -> dict[str, Any]:
    """This process as an owner."""
    return of(os.getpid())


def on_this_host(owner: Mapping[str, Any]) -> bool:
    """Whether the owner is a process of this machine."""
    return bool(owner["host"] == socket.gethostname())


def alive(owner: Mapping[str, Any]) -> bool:
    """Whether the owner still runs.

    True for an owner of another host: nothing here can tell, and taking a living study over would
    do harm. Somebody who knows better removes its lock.
    """
    if not on_this_host(owner):
        return True
    started = start_time(int(owner["pid"]))
    return started is not None and started == str(owner["start_time"])
