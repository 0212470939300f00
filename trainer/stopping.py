"""When a run has to end before its time: SIGTERM, or a driver that is gone.

A driver touches the file `heartbeat` in the run folder. Stillness is measured by this process's
own monotonic clock, which stands still too while the machine sleeps, so that a laptop that wakes
up does not lose its trial.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from trainer.errors import Stopped

STILL_SECONDS = 30.0
GRACE_SECONDS = 20.0
PR_SET_PDEATHSIG = 1


class StopRequest:
    """Remembers that somebody asked to stop, and why."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def ask(self, reason: str) -> None:
        """Asks; the first reason stays."""
        self.reason = self.reason or reason

    def asked(self) -> bool:
        """Whether somebody asked."""
        return self.reason is not None

    def check(self) -> None:
        """Raises Stopped if somebody asked."""
        if self.reason is not None:
            raise Stopped(self.reason)

    def on_signals(self) -> None:
        """SIGTERM, SIGHUP and Ctrl-C ask; a second Ctrl-C ends at once."""

        def handle(number: int, _frame: object) -> None:
            if number == signal.SIGINT and self.asked():
                os._exit(Stopped.exit_code)
            self.ask(f"{signal.Signals(number).name} received")

        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, handle)

    def on_parent_death(self, parent_pid: int) -> None:
        """SIGTERM when the parent process ends (Linux; elsewhere the heartbeat tells)."""
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:
            self.ask("the driver is gone")

    def on_still_heartbeat(self, heartbeat: Path, still_seconds: float = STILL_SECONDS) -> None:
        """Watches a heartbeat file, where there is one."""
        if heartbeat.exists():
            watch = threading.Thread(target=self._watch, args=(heartbeat, still_seconds))
            watch.daemon = True
            watch.start()

    def _watch(self, heartbeat: Path, still_seconds: float) -> None:
        seen, since = 0.0, time.monotonic()
        while time.monotonic() - since <= still_seconds:
            time.sleep(min(2.0, still_seconds / 4))
            try:
                beat = heartbeat.stat().st_mtime
            except OSError:
                continue
            if beat != seen:
                seen, since = beat, time.monotonic()
        self.ask("the driver is gone: its heartbeat stands still")
        time.sleep(GRACE_SECONDS)
        os._exit(Stopped.exit_code)  # a batch that never ends must not outlive its driver
