"""Reads `out_test.txt`, all that an image that is not ours tells: a line an evaluated epoch.

1 Loss: 0.6603 Accuracy: 0.711      (the first number is the epoch, the last the accuracy)
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from trainer.events import LineReader

OUT_TEST_FILE = "out_test.txt"

EPOCH = re.compile(r"\d+")
ACCURACY = re.compile(r"Accuracy:\s*(\S+)")


class OutTestReader:
    """Reads the epochs that were added to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self._lines = LineReader(path)

    def new(self) -> list[dict[str, Any]]:
        """`epoch` events {epoch, accuracy} since the last call; none where there is no file yet."""
        events = [epoch_event(line) for line in self._lines.new()]
        return [event for event in events if event is not None]


def epoch_event(line: str) -> dict[str, Any] | None:
    """What one line tells; None for a line that tells no epoch.

    An accuracy that is no finite number is None: that epoch has no accuracy.
    """
    epoch, accuracy = EPOCH.search(line), ACCURACY.search(line)
    if epoch is None or accuracy is None:
        return None
    try:
        number = float(accuracy[1].rstrip(",;"))
    except ValueError:
        number = math.nan
    value = number if math.isfinite(number) else None
    return {"event": "epoch", "epoch": int(epoch[0]), "accuracy": value, "evaluated_on": "test"}
