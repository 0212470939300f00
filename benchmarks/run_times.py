"""Where the time of one run went, from the files that it leaves in its run folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

PARTS = {
    "training": "training: batches, forward, backward, optimizer",
    "evaluation": "evaluation after each epoch, at the network's and at the images' own size",
    "loading": "reading, decoding and resizing the images, once a trial",
    "start": "start of a trial: Python, imports, building the network",
    "checkpoints": "checkpoints and logs",
    "unfinished": "what was cut before its epoch ended: by a time limit, a stop, an error",
    "test": "evaluation of the best model at the end of a call",
    "driver": "driver: reading the data, choosing, ending a trial's process, records, lost trials",
}


@dataclass
class Trial:
    """Where the time of one run went (s). `span` is from its launch to its result."""

    span: float
    images: int = 0
    memory_bytes: int = 0
    epoch_seconds: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))


def read_log(folder: Path) -> list[tuple[float, str]]:
    """The lines of trainer.log that have a time stamp: (seconds since 1970, text)."""
    text = (folder / "trainer.log").read_text(encoding="utf-8")
    found = re.findall(r"^\[(\d{4}-\w{3}-\d\d [\d:.]+)\] (.*)$", text, re.MULTILINE)
    return [(datetime.strptime(t, "%Y-%b-%d %H:%M:%S.%f").timestamp(), line) for t, line in found]


def read_trial(folder: Path) -> Trial | None:
    """The times of a run that ended; None where it was killed or still runs.

    Its launch is the time stamp of config.json, its end that of result.json. Training begins where
    out_train.txt counts its seconds from. The log tells the rest: when the images began to be
    read, when an epoch's last batch was done, and (a line across) when the epoch was put away.
    """
    try:
        launched = (folder / "config.json").stat().st_mtime
        ended = (folder / "result.json").stat().st_mtime
        code = json.loads((folder / "result.json").read_text(encoding="utf-8"))["exit_code"]
        log = read_log(folder)
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, KeyError):
        return None
    trial = Trial(ended - launched)
    parts, events = trial.parts, [json.loads(line) for line in lines]
    started: dict[str, Any] = next((e for e in events if e["event"] == "start"), {})
    trial.images = started.get("images", {}).get("training", 0)
    trial.memory_bytes = max((event.get("memory_bytes") or 0 for event in events), default=0)
    loading = next((at for at, text in log if text.startswith("Pre-loading")), ended)
    parts["start"] = loading - launched
    try:
        batches = folder / "out_train.txt"
        last = batches.read_text(encoding="utf-8").splitlines()[-1]
        at = batches.stat().st_mtime - float(last.split()[0])
    except (OSError, ValueError, IndexError):  # it ended before its first batch
        parts["unfinished"] = ended - loading
        return trial
    parts["loading"] = at - loading
    rules = [stamp for stamp, text in log if not text.strip("-")]
    epochs = [event for event in events if event["event"] == "epoch"]
    for event, rule in zip(epochs, rules, strict=False):
        batch = f"Train Epoch [{event['epoch']:3d}/"
        trained = max(stamp for stamp, text in log if text.startswith(batch)) - at
        parts["training"] += trained
        parts["evaluation"] += event["seconds"] - trained
        parts["checkpoints"] += rule - at - event["seconds"]
        trial.epoch_seconds.append(event["seconds"])
        at = rule
    parts["unfinished" if code else "checkpoints"] += ended - at
    return trial
