"""What a study will take, before it starts: the network's size, and the disk."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

from study.settings import PROGRAM_FOLDER, Settings
from trainer.errors import InputError
from trainer.networks.description import read_network

BYTES = 4
UNKNOWN_PARAMETERS = 35_000_000
"""Assumed where the network is not built on this side."""

MARGIN_BYTES = 200 * 1024**2


def describe(layers: Path) -> dict[str, int] | None:
    """What `python -m trainer --describe` says of a network; None where there is no torch here, and
    for code of the user, which only a trial runs.

    Raises InputError where the network cannot be built.
    """
    if importlib.util.find_spec("torch") is None or read_network(layers).kind == "module":
        return None
    told = subprocess.run(
        [sys.executable, "-m", "trainer", "--describe", str(layers)],
        capture_output=True,
        text=True,
        cwd=PROGRAM_FOLDER,
    )
    if told.returncode == InputError.exit_code:
        raise InputError("--layers", told.stderr.strip().removeprefix("Error: "))
    if told.returncode != 0:
        return None
    content: dict[str, int] = json.loads(told.stdout)
    return content


def disk_needed_bytes(parameters: int, settings: Settings) -> int:
    """Weights of the kept trials and of the best model (three copies), one running trial with its
    optimizer (two values a parameter at most), and logs."""
    weights = parameters * BYTES
    kept = settings.keep_checkpoints + 3
    running = 1 + 3
    return (kept + running) * weights + settings.num_trials * 200_000 + MARGIN_BYTES


def check_disk(here: Path, needed: int) -> int:
    """Free bytes where the runs are written; raises InputError where they do not suffice."""
    free = shutil.disk_usage(here).free
    if free < needed:
        raise InputError(
            f"the disk of {here}",
            f"{megabytes(free)} are free, the study needs about {megabytes(needed)}",
            "enough free space",
            "free some, start it on another disk, or lower --keep-checkpoints",
        )
    return free


def megabytes(size: int) -> str:
    """A size in words."""
    if size < 1e6:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
