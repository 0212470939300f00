"""What a run prints: lines with a time stamp, sections under a title. Also kept in trainer.log."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

RULE = 45


class Console:
    """Prints to stdout and, where a run has a folder, to its log file."""

    def __init__(self, log: Path | None = None) -> None:
        self._file: TextIO | None = log.open("a", encoding="utf-8", buffering=1) if log else None

    def line(self, text: str = "") -> None:
        """One line, with the time in front."""
        stamp = datetime.now().strftime("[%Y-%b-%d %H:%M:%S.%f] ")
        self.plain(stamp + text)

    def plain(self, text: str) -> None:
        """Text as it is."""
        try:
            print(text, flush=True)
        except BrokenPipeError:  # the reader of a pipe went away; the run goes on
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        if self._file:
            self._file.write(text + "\n")

    def section(self, title: str, items: dict[str, Any] | None = None) -> None:
        """A title in a rule, and its items below, one a line."""
        self.line(f" {title} ".center(RULE, "-"))
        self._told(items or {}, indent=3)

    def items(self, title: str, items: dict[str, Any]) -> None:
        """Items of a section that belong together, under a title of their own."""
        self.line(f"   {title}:")
        self._told(items, indent=6)

    def _told(self, items: dict[str, Any], indent: int) -> None:
        width = max((len(key) for key in items), default=0)
        for key, value in items.items():
            self.line(f"{'':{indent}}{key:<{width}}: {value}")

    def rule(self) -> None:
        """A line across."""
        self.line("-" * RULE)
