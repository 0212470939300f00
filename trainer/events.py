"""`metrics.jsonl`: what a running trial tells its driver, one JSON object a line, flushed.

Events, by the key `event`:

    start       schema_version, device, threads, seed, parameters, images {training, evaluation},
                weights, resumed_after (null, or {epoch, batches}: so much was done before)
    epoch       epoch, epochs, loss, evaluated_on, evaluation_loss, accuracy, foreground_dice,
                iou, class_dice {name: Dice}, learning_rate, seconds, memory_bytes (peak on the GPU)
    checkpoint  file, epoch
    end         reason, exit_code

`accuracy` and the others are fractions, `seconds` the duration of the epoch with its evaluation.
Torch-free: the trainer writes, the driver reads.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from trainer.files import open_plain

METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
LOG_FILE = "trainer.log"
STDERR_FILE = "stderr.txt"
PROCESS_FILE = "process.json"
"""While a child process runs: {host, pid, start_time, driver: the same of it}."""

HEARTBEAT_FILE = "heartbeat"
"""Touched by a thread of the driver; a run ends where it stands still."""

RUN_FILES = (METRICS_FILE, LOG_FILE, STDERR_FILE, PROCESS_FILE, HEARTBEAT_FILE)
"""What a launcher and a run keep in a run folder while it runs."""


SCHEMA_VERSION = 1
"""Of `start` events and of result.json; another number means that keys changed their meaning."""


UNREADABLE = "unreadable"
NUMBERS = ("loss", "evaluation_loss", "accuracy", "foreground_dice", "iou", "seconds")
MOST_EPOCHS = 10**9
SHOWN_CHARACTERS = 80


def plain(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by None, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class EventLog:
    """Appends events to a file; with `path` None it does nothing (a run without a run folder).

    A last line that was cut off (a full disk, a kill) is removed first.
    """

    def __init__(self, path: Path | None) -> None:
        if path and path.exists():
            with path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8") if path else None

    def write(self, event: str, **fields: Any) -> None:
        """One event, on the disk when this returns."""
        if self._file:
            self._file.write(json.dumps({"event": event, **plain(fields)}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """No event can be written afterwards."""
        if self._file:
            self._file.close()


class LineReader:
    """Reads the lines that were added to a file since the last look.

    A last line without its line break is still being written and waits for the next look.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def new(self) -> list[str]:
        """The lines since the last call, oldest first; none where the file is not there yet."""
        try:
            with open_plain(self._path) as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:  # not there yet, or a link that a trial made
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return complete.decode("utf-8", errors="replace").splitlines()


def read_event(line: str) -> dict[str, Any]:
    """The event of one line; {event: UNREADABLE, line, why} for what is none.

    A script of the user may write anything. Numbers that are not finite become None.
    """

    def unreadable(why: str) -> dict[str, Any]:
        return {"event": UNREADABLE, "line": ascii(line[:SHOWN_CHARACTERS]), "why": why}

    try:
        event = plain(json.loads(line))
    except (ValueError, RecursionError):
        return unreadable("not JSON")
    if not isinstance(event, dict):
        return unreadable("not an object")
    if event.get("event") != "epoch":
        return event
    epoch = event.get("epoch")
    if type(epoch) is not int or not 1 <= epoch <= MOST_EPOCHS:
        return unreadable("no epoch number")
    for key in NUMBERS:
        value = event.get(key)
        if value is not None and (type(value) not in (int, float) or abs(value) > 1e15):
            return unreadable(f"{key} is not a number")
    classes = event.get("class_dice")
    if classes is not None and not (
        isinstance(classes, dict)
        and all(v is None or type(v) in (int, float) for v in classes.values())
    ):
        return unreadable("class_dice is no object of numbers")
    return event


class EventReader:
    """Reads the events that were added to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self._lines = LineReader(path)

    def new(self) -> list[dict[str, Any]]:
        """The events since the last call, oldest first; none where the file is not there yet."""
        return [read_event(line) for line in self._lines.new() if line.strip()]
