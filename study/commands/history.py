"""Earlier studies, and the one that runs: what their folders and the storage know of them.

    for past in studies(Path.cwd(), DEFAULT_STORAGE): print(past.name, past.state)

Reads only. A study whose storage is gone is known from its folder in runs/, one whose folder is
gone from the storage; `missing` says which.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from study import paste
from study.lock import LOCK_FILE, holder
from study.promotion import best_of
from study.records import (
    BEST_FOLDER,
    LIST_FILE,
    ORIGIN_FILE,
    SPLIT_FILE,
    Records,
    TrialRecord,
    run_name,
)
from study.resources import megabytes
from study.storage import MADE_WITH_ATTRIBUTE, existing_storage, masked
from study.view import duration, number
from trainer.errors import InputError, nearest, printable

RUNNING, ENDED, INTERRUPTED, UNKNOWN = "running", "ended", "interrupted", "unknown"
STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")


@dataclass
class Past:
    """A study of this folder. `entries` are the trials that ended, as in list_acc.json; `open`
    has (number, state, parameters) of the others; `options` is empty where nothing tells them."""

    name: str
    folder: Path
    state: str = INTERRUPTED
    entries: list[dict[str, Any]] = field(default_factory=list)
    open: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    data_checksum: str | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """What its trials are chosen by."""
        metrics = [str(entry["metric"]) for entry in self.entries if "metric" in entry]
        return str(self.options.get("metric") or (metrics[0] if metrics else "accuracy"))

    @property
    def best(self) -> TrialRecord | None:
        """Its best trial."""
        return best_of([TrialRecord.from_dict(entry) for entry in self.entries])

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state, in the order of STATES."""
        found = Counter([entry["state"] for entry in self.entries])
        found.update(state for _, state, _ in self.open)
        return {state: found[state] for state in STATES if found[state]}

    @property
    def begun(self) -> datetime | None:
        """When its first trial began; None without run folders."""
        times = [p.stat().st_mtime for p in self.folder.glob("trial-*/config.json")]
        return datetime.fromtimestamp(min(times)) if times else None

    @property
    def bytes(self) -> int:
        """Size of its folder on the disk."""
        return sum(size for _, size in files(self.folder))

    @property
    def origin(self) -> dict[str, Any]:
        """best_model.json of its model; empty without one."""
        return read_object(self.folder / BEST_FOLDER / ORIGIN_FILE)


def files(folder: Path) -> list[tuple[Path, int]]:
    """Every file below a folder with its bytes, links not followed."""
    found = []
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(place) / name
            if path.exists() or path.is_symlink():  # a study that runs removes files
                found.append((path, path.lstat().st_size))
    return found


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where it is not there or is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds; empty where there is none."""
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def studies(here: Path, url: str) -> list[Past]:
    """All studies of the folder `here` and of the storage, in the order of their names."""
    runs = here / "runs"
    found: dict[str, Past] = {}
    for folder in sorted(runs.iterdir()) if runs.is_dir() else []:
        if any((folder / name).is_file() for name in (LOCK_FILE, LIST_FILE, SPLIT_FILE)):
            found[folder.name] = Past(folder.name, folder)
    storage = existing_storage(url)
    try:
        stored = storage.read_all() if storage else {}
    finally:
        if storage:
            storage.close()
    for name in stored:
        found.setdefault(name, Past(name, runs / name))
    for name, past in found.items():
        _from_folder(past)
        if name in stored:
            _from_storage(past, *stored[name])
        else:
            past.missing.append(f"not in {masked(url)}, known from runs/ alone")
        if not past.folder.is_dir():
            past.missing.append("no folder in runs/ here, known from the storage alone")
        past.state = _state(past)
    return sorted(found.values(), key=lambda past: past.name)


def find(name: str, here: Path, url: str) -> Past:
    """The study of that name; raises InputError with the nearest one."""
    found = {past.name: past for past in studies(here, url)}
    if name not in found:
        accepted = ", ".join(list(found)[-10:]) or "none was run here yet"
        raise InputError(f"study '{name}'", f"is not known here{nearest(name, found)}", accepted)
    return found[name]


def _from_folder(past: Past) -> None:
    content = read_json(past.folder / LIST_FILE)
    if isinstance(content, list):
        past.entries = [e for e in content if isinstance(e, dict) and "trial" in e and "state" in e]
    origin = past.origin
    past.options, past.data_checksum = origin.get("options") or {}, origin.get("data_checksum")


def _from_storage(past: Past, attributes: dict[str, Any], trials: list[Any]) -> None:
    made_with = attributes.get(MADE_WITH_ATTRIBUTE) or {}
    past.options = made_with.get("options") or past.options
    past.data_checksum = made_with.get("data") or past.data_checksum
    told = [t for t in trials if "record" in t.user_attrs]
    if not made_with:
        past.missing.append("not made by this program")
    past.entries = [
        TrialRecord.from_dict(t.user_attrs["record"]).as_dict(past.name, past.metric) for t in told
    ]
    ended = {t.number for t in told}
    past.open = [(t.number, t.state.name, t.params) for t in trials if t.number not in ended]


def _state(past: Past) -> str:
    if holder(past.folder):
        return RUNNING
    promoted = Records(past.folder, past.folder, print).promoted()
    if promoted and promoted[1]:  # the last thing that a study does
        return ENDED
    by_themselves = [e for e in past.entries if not str(e.get("cause")).startswith(INTERRUPTED)]
    wanted = past.options.get("num-trials")
    if wanted is None:
        return UNKNOWN
    return ENDED if len(by_themselves) >= wanted and not past.best else INTERRUPTED


# ---- what is printed ----
def print_studies(found: list[Past]) -> None:
    """A table of studies, and what is missing below it."""
    if not found:
        print(f"no study was run here yet: {paste.driver()} --data FOLDER")
        return
    rows = []
    for past in found:
        best = past.best
        words = {"RUNNING": "running" if past.state == RUNNING else "cut off"}
        counts = ", ".join(f"{n} {words.get(s, s.lower())}" for s, n in past.counts.items())
        wanted = past.options.get("num-trials")
        data = past.options.get("data")
        rows.append(
            [
                past.name,
                past.state,
                (counts or "none") + (f" of {wanted}" if wanted else ""),
                f"{past.metric} {number(best.value)} (trial {best.trial})" if best else "-",
                paste.shown(Path(data)) if data else "-",
                f"{past.begun:%Y-%m-%d %H:%M}" if past.begun else "-",
                megabytes(past.bytes),
            ]
        )
    head = ["study", "state", "trials", "best", "data", "begun", "disk"]
    print(tabulate(rows, headers=head, tablefmt="simple", disable_numparse=True))
    for what in sorted({what for past in found for what in past.missing}):
        print(f"{what}: {', '.join(past.name for past in found if what in past.missing)}")


def print_trials(past: Past) -> None:
    """A table of the trials of a study, the best marked with a star."""
    best = past.best
    rows = []
    for entry in past.entries:
        trial = int(entry["trial"])
        mark = "*" if best and best.trial == trial else ""
        scores = [entry.get(key) for key in ("max_acc", "foreground_dice", "iou")]
        if entry["state"] == "FAIL":
            scores = [None] * 3
        epochs = f"{entry.get('epoch_max_acc', '?')}/{entry.get('epochs', '?')}"
        chosen = [entry.get("optimizer"), entry.get("loss"), f"{entry.get('lr', 0):.2e}"]
        rest = [*map(number, scores), epochs, duration(entry.get("seconds", 0))]
        rows.append([f"{mark}{trial}", entry["state"], *chosen, *rest, *_words(entry)])
    for trial, state, params in past.open:
        told = state if past.state == RUNNING or state != "RUNNING" else "CUT OFF"
        rate = f"{params['learning_rate']:.2e}" if "learning_rate" in params else ""
        chosen = [params.get("optimizer", ""), params.get("loss", ""), rate]
        rows.append([str(trial), told, *chosen, *[""] * 6])
    head = ["trial", "state", "optimizer", "loss", "rate", "accuracy", "Dice", "IoU", "epoch"]
    head += ["time", "remarks"]
    align = ["right", "left", "left", "left", *["right"] * 6, "left"]
    table = tabulate(rows, headers=head, tablefmt="simple", disable_numparse=True, colalign=align)
    print(f"{past.name}: {past.state}, chosen by {past.metric}; * is the best trial")
    print(table)
    for what in past.missing:
        print(f"{past.name}: {what}")


def _words(entry: dict[str, Any]) -> list[str]:
    """The last column: why it ended, and Dice by class where there are several."""
    classes = class_dice(entry)
    return [printable("; ".join(t for t in (str(entry.get("cause") or ""), classes) if t))]


def class_dice(entry: dict[str, Any]) -> str:
    """Dice by name of the class, where it was recorded."""
    classes = entry.get("class_dice") or {}
    return ", ".join(f"{n} {number(value)}" for n, value in classes.items() if len(classes) > 1)


def run_folder_of(past: Past, trial: int) -> Path:
    """Where a trial ran."""
    return past.folder / run_name(trial)
