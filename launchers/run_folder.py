"""What the launchers share about a trial that was started in its run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from launchers import HEARTBEAT_FILE, HEARTBEAT_SECONDS, Running
from trainer.errors import InputError

POLL_SECONDS = 0.05

STDERR_FILE = "stderr.txt"
"""In the run folder: what the trainer's process said on its standard error."""


def trainer_options(device: str, threads: int) -> list[str]:
    """What follows `python -m trainer`; `device` as the trial sees it."""
    run = ["--config=config.json", "--run-folder", "."]
    return [*run, "--device", device, "--threads", str(threads)]


def thread_limits(threads: int) -> dict[str, str]:
    """Environment variables; the libraries read them once, when they are loaded."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def device_inside(device: str) -> str:
    """The device as the trial sees it: whichever GPU it was given is its first."""
    return "cuda:0" if device.startswith("cuda") else device


def gpu_name(device: str, environment: Mapping[str, str]) -> str | None:
    """The number or UUID of the GPU that "cuda:N" means; None where the device is no GPU.

    Where the driver itself may use only some GPUs (a batch system set CUDA_VISIBLE_DEVICES), N
    counts those; raises InputError if there are fewer.
    """
    if not device.startswith("cuda"):
        return None
    number = int(device.partition(":")[2] or 0)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(number)
    allowed = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    if number >= len(allowed):
        found = f"'{device}' is not among the GPUs of CUDA_VISIBLE_DEVICES='{visible}'"
        accepted = ", ".join(f"cuda:{index}" for index in range(len(allowed))) or "cpu"
        raise InputError("device", found, accepted)
    return allowed[number]


class Heartbeat:
    """The file whose time tells a trial that its driver is there; it beats from the beginning."""

    def __init__(self, run_folder: Path) -> None:
        self._file = run_folder / HEARTBEAT_FILE
        self._file.touch()
        self._last = time.monotonic()

    def beat(self) -> None:
        """Touches the file if it is time to."""
        if time.monotonic() - self._last < HEARTBEAT_SECONDS:
            return
        # A run folder that somebody removed must not end the driver; its trial ends by itself.
        with suppress(OSError):
            self._file.touch()
        self._last = time.monotonic()

    def end(self) -> None:
        """The trial is over: removes the file."""
        with suppress(OSError):
            self._file.unlink()


def wait_until_ended(
    running: Running, beat: Callable[[], None], timeout_seconds: float | None
) -> int:
    """Keeps the heart beating until the trial ends; its exit code. Raises TimeoutError."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while (code := running.exit_code) is None:
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"still running after {timeout_seconds} s")
        beat()
        time.sleep(POLL_SECONDS)
    return code


def stop_or_kill(running: Running, kill: Callable[[], None], grace_seconds: float) -> None:
    """Asks the trial to stop, waits so long, then kills it. Returns when it is gone."""
    running.request_stop()
    try:
        running.wait(grace_seconds)
    except TimeoutError:
        kill()
        running.wait()
