"""Where one trial runs. One seam, small files: `launch(job) -> Running`.

A launcher starts `python -m trainer --config=config.json --run-folder . …`, or another command,
somewhere with the run folder as its working directory and contract (see `trainer/events.py`). The
driver polls, and stops what it no longer wants.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

HEARTBEAT_SECONDS = 2.0
"""How often the driver touches it."""


@dataclass(frozen=True)
class Job:
    """One trial, ready to run.

    `run_folder` is absolute, lies in the study's folder and holds config.json. `inputs` are the
    absolute paths that the configuration reads. `device` is "cpu", "mps" (a process on a Mac)
    or "cuda:N", N counting the GPUs that the driver may use. `cores` are the CPU cores that the
    trial may use (none: all). `memory_bytes` limits a container (None: nine tenths of the machine's
    memory). `study` and `trial` label what is started.

    `command` is run instead of the trainer: a program of the user and its arguments, without a
    shell. `module` is another module of this program and its arguments, like ("trainer.predict",
    "--out", "."). What either prints goes to trainer.log. At most one of them is given.
    """

    run_folder: Path
    study: str
    trial: int
    device: str = "cpu"
    threads: int = 1
    inputs: tuple[Path, ...] = field(default=())
    cores: tuple[int, ...] = ()
    memory_bytes: int | None = None
    command: tuple[str, ...] | None = None
    module: tuple[str, ...] | None = None

    @property
    def runs_trainer(self) -> bool:
        """Whether it is a plain trial: neither a command nor a module."""
        return self.command is None and self.module is None


class Running(Protocol):
    """A trial that was started."""

    def poll(self) -> list[dict[str, Any]]:
        """Events since the last poll.

        The last events may be written after the last poll that found it running: poll once more
        when `exit_code` is no longer None.
        """

    @property
    def exit_code(self) -> int | None:
        """None while it runs; the trainer's exit code; 128 + N where signal N ended it.

        137 (SIGKILL) without `stop` or `kill` is most often the kernel: no memory is left.
        """

    def request_stop(self) -> None:
        """Asks it to stop (SIGTERM) and returns at once; keep polling until it has ended."""

    def stop(self, grace_seconds: float = 30) -> None:
        """Asks it to stop, waits so long, then kills it. Returns when it is gone."""

    def kill(self) -> None:
        """Kills it at once and returns without waiting; safe to call from a signal handler."""

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Waits until it ends; its exit code. Raises TimeoutError."""


class Launcher(Protocol):
    """Starts trials in one kind of place."""

    @property
    def name(self) -> str:
        """What `--launcher` calls it."""

    def launch(self, job: Job) -> Running:
        """Starts a trial; raises InputError where it cannot be started as asked."""

    def reap(self, study_folder: Path) -> int:
        """Ends trials of the study that a dead driver of this host left; how many there were.

        `study_folder` has the study's run folders. (Its name would not do: two checkouts may have
        a study of the same name.)
        """
