"""Ctrl-C, SIGTERM and SIGHUP while trials run: the trial is stopped and told, the study stays."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from launchers import Running


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or SIGHUP."""


class Interruption:
    """Remembers that somebody asked the driver to stop; a second Ctrl-C kills the trial."""

    def __init__(self) -> None:
        self.asked = False
        self.running: Running | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            if self.running:
                self.running.kill()
            os._exit(130)
        self.asked = True
