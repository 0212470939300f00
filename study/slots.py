"""What this machine has for trials: cores and GPUs, found without torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """Where one trial runs: "cpu", "cuda:N" or "mps", with so many threads on these cores."""

    device: str
    threads: int
    cores: tuple[int, ...]


def cores() -> tuple[int, ...]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def apple_gpu() -> bool:
    """Whether this is a Mac with a GPU that torch uses as mps."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def gpus() -> list[str]:
    """Names of the GPUs that this process may use, as nvidia-smi and CUDA_VISIBLE_DEVICES say."""
    if apple_gpu():
        return ["Apple (MPS)"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.replace("-1", "").strip():
        return []
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    names = [line.strip() for line in told.stdout.splitlines() if line.strip()]
    if told.returncode != 0:
        return []
    return names[: len(visible.split(","))] if visible else names


def choose_slot(gpu: bool, threads: int | None) -> Slot:
    """The one slot of a study: the first GPU or the CPU, with the threads asked for or all."""
    mine = cores()
    count = threads or len(mine)
    device = ("mps" if apple_gpu() else "cuda:0") if gpu else "cpu"
    return Slot(device, count, mine[:count] if count < len(mine) else ())
