"""Runs nothing: a script says what a trial tells and how it ends. For tests and dry runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from launchers import Job
from trainer.errors import Stopped

Script = Callable[[Job], Iterable[dict[str, Any] | int]]
"""The events of a trial in order, one a poll; a number ends it with that exit code (default 0)."""


KILLED = 137
"""Exit code of a trial that SIGKILL ended."""


class FakeLauncher:
    """Starts trials that follow `script`. `launched` has the jobs, in order."""

    name = "fake"

    def __init__(self, script: Script) -> None:
        self._script = script
        self.launched: list[Job] = []

    def launch(self, job: Job) -> RunningFake:
        """The trial, standing before its first event."""
        self.launched.append(job)
        return RunningFake(self._script(job))

    def reap(self, study_folder: Path) -> int:
        """Nothing is ever left."""
        return 0


class RunningFake:
    """A trial that follows a script; see `launchers.Running`."""

    def __init__(self, steps: Iterable[dict[str, Any] | int]) -> None:
        self._steps = iter(steps)
        self._unread: list[dict[str, Any]] = []
        self._exit_code: int | None = None

    def poll(self) -> list[dict[str, Any]]:
        """The next event; on the way out of `wait`, all that were not read."""
        self._step()
        events, self._unread = self._unread, []
        return events

    @property
    def exit_code(self) -> int | None:
        """None until the script has ended."""
        return self._exit_code

    def request_stop(self) -> None:
        """Ends it at once, as a trainer does that was asked to."""
        if self._exit_code is None:
            self._exit_code = Stopped.exit_code

    def stop(self, grace_seconds: float = 30) -> None:
        """Ends it at once."""
        self.request_stop()

    def kill(self) -> None:
        """Ends it at once."""
        if self._exit_code is None:
            self._exit_code = KILLED

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Follows the script to its end; its exit code."""
        while self._exit_code is None:
            self._step()
        return self._exit_code

    def _step(self) -> None:
        if self._exit_code is not None:
            return
        step = next(self._steps, 0)
        if isinstance(step, int):
            self._exit_code = step
        else:
            self._unread.append(step)
