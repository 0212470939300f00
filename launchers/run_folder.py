"""What the launchers share about a trial that was started in its run folder."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from launchers import HEARTBEAT_SECONDS, Running
from trainer.errors import InputError
from trainer.events import HEARTBEAT_FILE

POLL_SECONDS = 0.05


def trainer_options(device: str, threads: int, measure: bool = False) -> list[str]:
    """What follows `python -m trainer`; `device` as the trial sees it."""
    run = ["--config=config.json", "--run-folder", ".", "--trust-code"]  # the study's own files
    run += ["--measure"] if measure else []
    return [*run, "--device", device, "--threads", str(threads)]


def supervised(command: Sequence[str], python: str, program: Path, watched: str) -> list[str]:
    """A command that does not watch its driver, run by what does; see trainer/supervise.py.

    `program` is where trainer/ lies, `python` any interpreter there, `watched` what tells that the
    driver is gone.
    """
    supervisor = str(program / "trainer" / "supervise.py")
    return [python, "-I", "-S", supervisor, watched, "--", *command]


def thread_limits(threads: int) -> dict[str, str]:
    """Environment variables; the libraries read them once, when they are loaded."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def device_inside(device: str) -> str:
    """The device as the trial sees it: whichever GPU it was given is its first; a Mac's is mps."""
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


def open_to_append(path: Path) -> BinaryIO:
    """A file in a run folder, unbuffered. A container that could write there cannot send us on.

    Raises InputError where it is a link, or anything else that is no plain file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise
        raise InputError(str(path), "is not a plain file", fix="remove it") from None


class Heartbeat:
    """The file whose time tells a trial that its driver is there.

    A thread of its own touches it until `end`, whatever the driver's main thread waits for.
    """

    def __init__(self, run_folder: Path) -> None:
        self._file = run_folder / HEARTBEAT_FILE
        open_to_append(self._file).close()
        self._touch()
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _touch(self) -> None:
        # Makes no file, so a last beat cannot undo `end`. A run folder that somebody removed must
        # not end the driver; its trial ends by itself.
        with suppress(OSError):
            os.utime(self._file, follow_symlinks=False)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self._touch()

    def end(self) -> None:
        """The trial is over: removes the file."""
        self._ended.set()
        with suppress(OSError):
            self._file.unlink()


def wait_until_ended(running: Running, timeout_seconds: float | None) -> int:
    """Waits until the trial ends; its exit code. Raises TimeoutError."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while (code := running.exit_code) is None:
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"still running after {timeout_seconds} s")
        time.sleep(POLL_SECONDS)
    return code


def stop_or_kill(running: Running, grace_seconds: float) -> None:
    """Asks the trial to stop, waits so long, then kills it. Returns when it is gone."""
    running.request_stop()
    try:
        running.wait(grace_seconds)
    except TimeoutError:
        running.kill()
        running.wait()
