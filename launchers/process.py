"""Runs a trial as a child process, with the Python that runs the driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from launchers import Job, owner
from launchers.image import PROGRAM_FOLDER
from launchers.run_folder import (
    POLL_SECONDS,
    Heartbeat,
    device_inside,
    gpu_name,
    open_to_append,
    stop_or_kill,
    supervised,
    thread_limits,
    trainer_options,
    wait_until_ended,
)
from trainer.events import LOG_FILE, METRICS_FILE, PROCESS_FILE, STDERR_FILE, EventReader

REAP_SECONDS = 5.0

# -P: nothing in the run folder can stand in for a module.
TRAINER = (sys.executable, "-P", "-m", "trainer")


class ProcessLauncher:
    """Starts trials as children of this process.

    `command_prefix` is what comes before the trainer's options. The modules are searched in
    `program` first.

    A child asks the kernel to be ended with the thread that started it, so `launch` belongs into
    the driver's main thread.
    """

    name = "process"

    def __init__(
        self, command_prefix: Sequence[str] = TRAINER, program: Path = PROGRAM_FOLDER
    ) -> None:
        self._prefix, self._program = tuple(command_prefix), program

    def launch(self, job: Job) -> RunningProcess:
        """Starts the trial. `memory_bytes` is not enforced: CUDA needs address space freely."""
        environment = child_environment(job, self._program, os.environ)
        with ExitStack() as stack:
            stderr = stack.enter_context(open_to_append(job.run_folder / STDERR_FILE))
            stdout: BinaryIO | int = subprocess.DEVNULL  # the trainer writes its log itself
            if not job.runs_trainer:
                stdout = stack.enter_context(open_to_append(job.run_folder / LOG_FILE))
            stack.enter_context(_on_cores(job.cores))
            heartbeat = Heartbeat(job.run_folder)
            try:
                child = subprocess.Popen(
                    self._arguments(job),
                    cwd=job.run_folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    # Its own session: a Ctrl-C in the terminal reaches only the driver.
                    start_new_session=True,
                )
            except BaseException:
                heartbeat.end()
                raise
        _write_process_file(job.run_folder, child.pid)
        return RunningProcess(job.run_folder, child, heartbeat)

    def _arguments(self, job: Job) -> list[str]:
        driver = str(os.getpid())
        if job.runs_trainer:
            options = trainer_options(device_inside(job.device), job.threads)
            return [*self._prefix, *options, "--parent-pid", driver]
        command = job.command or (sys.executable, "-P", "-m", *(job.module or ()))
        return supervised(command, sys.executable, PROGRAM_FOLDER, driver)

    def reap(self, study_folder: Path) -> int:
        """Kills trials of the study that a dead driver of this host left; how many there were.

        A child of a driver that was killed ends by itself; this is for one that has not yet.
        """
        ended = 0
        for file in sorted(study_folder.glob(f"*/{PROCESS_FILE}")):
            try:
                child = json.loads(file.read_text(encoding="utf-8"))
                if not owner.on_this_host(child) or owner.alive(child["driver"]):
                    continue
                if owner.alive(child):
                    _kill_group(int(child["pid"]))
                    ended += 1
                    deadline = time.monotonic() + REAP_SECONDS
                    while owner.alive(child) and time.monotonic() < deadline:
                        time.sleep(POLL_SECONDS)
                file.unlink(missing_ok=True)
            except (ValueError, KeyError, TypeError):  # Not a file of ours.
                continue
        return ended


class RunningProcess:
    """A trial that runs as a child process; see `launchers.Running`."""

    def __init__(
        self, run_folder: Path, child: subprocess.Popen[bytes], heartbeat: Heartbeat
    ) -> None:
        self._child, self._heartbeat = child, heartbeat
        self._events = EventReader(run_folder / METRICS_FILE)
        self._process_file = run_folder / PROCESS_FILE

    @property
    def pid(self) -> int:
        """The child's process id, which is its process group too."""
        return self._child.pid

    def poll(self) -> list[dict[str, Any]]:
        """Events since the last poll."""
        return self._events.new()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; its exit code; 128 + N where signal N ended it."""
        if self._child.returncode is None and self._child.poll() is not None:
            self._heartbeat.end()
            _kill_group(self.pid)  # what it left running
            with suppress(OSError):
                self._process_file.unlink()
        code = self._child.returncode
        return 128 - code if code is not None and code < 0 else code

    def request_stop(self) -> None:
        """Sends SIGTERM to the trainer, not to its group: it ends its workers itself."""
        self._child.terminate()

    def stop(self, grace_seconds: float = 30) -> None:
        """Asks it to stop, waits so long, then kills it and its workers."""
        stop_or_kill(self, grace_seconds)

    def kill(self) -> None:
        """Kills it and its workers at once; does not wait."""
        # Not Popen.kill: that takes a lock, which the code that a signal interrupted may hold.
        if self._child.returncode is None:
            _kill_group(self.pid)

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Waits until it ends; its exit code. Raises TimeoutError."""
        return wait_until_ended(self, timeout_seconds)


def child_environment(job: Job, program: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with what the trial needs: modules, threads, no network, and its GPU alone."""
    paths = [str(program) if job.command is None else "", environment.get("PYTHONPATH", "")]
    return {
        # GPUs in the order of nvidia-smi and of Docker, not the fastest first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **environment,
        **({"PYTHONPATH": os.pathsep.join(filter(None, paths))} if any(paths) else {}),
        **thread_limits(job.threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": gpu_name(job.device, environment) or "",
    }


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """This thread meanwhile runs on `cores` alone (none: no change); what it starts stays there.

    To move a child after its start would be a race with the threads that it makes.
    """
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _write_process_file(run_folder: Path, pid: int) -> None:
    beside = run_folder / f"{PROCESS_FILE}.new"
    beside.unlink(missing_ok=True)
    with beside.open("x", encoding="utf-8") as file:  # "x" follows no link
        json.dump({**owner.of(pid), "driver": owner.me()}, file)
    beside.replace(run_folder / PROCESS_FILE)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
