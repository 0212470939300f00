"""One trial, all that is known of it: also while it runs, also where the storage is gone."""

from __future__ import annotations

import shlex
from math import isfinite
from pathlib import Path
from typing import Any

from tabulate import tabulate

from study import failures, paste
from study.commands.chart import chart
from study.commands.history import RUNNING, Past, class_dice, files, read_object, run_folder_of
from study.resources import megabytes
from study.trial_command import CONFIG
from study.view import duration, number
from trainer.config import load_config
from trainer.errors import InputError, printable
from trainer.events import LOG_FILE, METRICS_FILE, EventReader

LOG_LINES = 30
INPUTS = ("config.json", "layers.json")
"""With the Python files of a network: what makes a run folder a trial."""

CHARTS = (
    {"accuracy": "a", "foreground_dice": "d"},
    {"loss": "t", "evaluation_loss": "e"},
)
NAMES = {
    "accuracy": "accuracy",
    "foreground_dice": "foreground Dice",
    "loss": "training loss",
    "evaluation_loss": "loss of the evaluated images",
}


def show_trial(past: Past, trial: int) -> None:
    """Prints a trial; raises InputError for a number that the study does not have."""
    entry = next((e for e in past.entries if e["trial"] == trial), None)
    open_ = next(((state, params) for n, state, params in past.open if n == trial), None)
    folder = run_folder_of(past, trial)
    if entry is None and open_ is None and not folder.is_dir():
        known = sorted({e["trial"] for e in past.entries} | {n for n, _, _ in past.open})
        accepted = f"{known[0]} to {known[-1]}" if known else "none: it has no trial yet"
        raise InputError(f"trial {trial}", f"is not in the study '{past.name}'", accepted)
    events = _events(folder)
    rows = [("Study, trial", f"{past.name}, {trial}"), *_state(past, entry, open_, folder)]
    rows += _settings(folder, entry, open_)
    rows += _scores(past, entry, events)
    rows += [("The study", what) for what in past.missing]
    rows = [(name, printable(value)) for name, value in rows]
    print(tabulate(rows, tablefmt="plain", maxcolwidths=[None, 100], disable_numparse=True))
    for line in _curves(events):
        print(line)
    log = failures.last_lines(folder, LOG_LINES).splitlines()[-LOG_LINES:]
    if log:
        print(f"\nThe last lines of {paste.shown(folder / LOG_FILE)}:")
        print("\n".join(f"  {printable(line)}" for line in log))
    if there := files(folder):
        print("\nIts files:")
        for path, size in there:
            print(f"  {megabytes(size):>8}  {printable(str(path.relative_to(folder)))}")
    if command := repeat_command(past, trial, events):
        print(f"\nTo repeat it by hand, in a new folder:\n  {command}")


def _events(folder: Path) -> list[dict[str, Any]]:
    """What the trial told; lines of a user's script that are no events are passed over."""
    return EventReader(folder / METRICS_FILE).new()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _state(
    past: Past,
    entry: dict[str, Any] | None,
    open_: tuple[str, dict[str, Any]] | None,
    folder: Path,
) -> list[tuple[str, str]]:
    if entry:
        cause = entry.get("cause") or f"it trained all of its {entry.get('epochs', '?')} epochs"
        rows = [("State", str(entry["state"])), ("Why", printable(str(cause)))]
        return [*rows, ("Time", duration(float(entry.get("seconds") or 0)))]
    if open_ and open_[0] != RUNNING.upper():
        return [("State", open_[0]), ("Why", "it waits for its turn")]
    result = read_object(folder / "result.json")
    if past.state == RUNNING and not result:
        return [("State", "RUNNING"), ("Why", "its driver is at work")]
    told = f"; it said: {printable(str(result['reason']))}" if result.get("reason") else ""
    if past.state == RUNNING:
        return [("State", "ENDING"), ("Why", f"its driver has not told the study yet{told}")]
    return [("State", "CUT OFF"), ("Why", f"its driver is gone; --resume begins it again{told}")]


def _settings(
    folder: Path, entry: dict[str, Any] | None, open_: tuple[str, dict[str, Any]] | None
) -> list[tuple[str, str]]:
    """From its configuration, else from what the study chose."""
    try:
        config = load_config(folder / "config.json")
    except (InputError, ValueError, RecursionError):  # a trial may write there what it likes
        config = None
    if config is None or config.optimizer is None or config.loss is None:
        chosen = open_[1] if open_ else entry or {}
        keys = ("optimizer", "learning_rate", "lr", "loss", "weights")
        return [(key, str(chosen[key])) for key in keys if key in chosen]
    data, optimizer = config.data, config.optimizer
    transforms = [f"{t.name} {t.told}" for t in (*data.transforms, *data.input_transforms)]
    rows = [
        ("Optimizer", f"{optimizer.type}, rate {optimizer.learning_rate:.4g}"),
        ("Schedule", " x ".join(schedule.told for schedule in optimizer.schedules) or "none"),
        ("Loss", config.loss.function),
        ("Epochs, batch size", f"{config.num_epochs}, {data.batch_size}"),
        ("Transforms", ", ".join(transforms)),
        ("Data", printable(str(data.input_path))),
    ]
    searched = (entry or {}).get("parameters") or (open_[1] if open_ else {})
    if any("." in key for key in searched):  # of a --space
        told = ", ".join(f"{key} {value}" for key, value in searched.items())
        rows.insert(0, ("Searched", printable(told)))
    return rows + ([("Weights", str(entry["weights"]))] if entry and entry.get("weights") else [])


def _scores(
    past: Past, entry: dict[str, Any] | None, events: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    epochs = [e for e in events if e.get("event") == "epoch" and _is_number(e.get(past.metric))]
    if not epochs and entry and entry.get("value") is not None:
        told = {"event": "epoch", "epoch": entry.get("epoch_max_acc"), **entry}
        epochs = [{**told, "accuracy": entry.get("max_acc"), past.metric: entry["value"]}]
    if not epochs:
        return [("Best epoch", "none: no epoch was evaluated")]
    best = max(epochs, key=lambda e: (e[past.metric], -e["epoch"]))
    last = epochs[-1]
    on = best.get("evaluated_on") or "its images"
    text = f"{best['epoch']} of {last.get('epochs', '?')}; on {on}: "
    text += f"accuracy {number(best.get('accuracy'))}, foreground Dice "
    text += f"{number(best.get('foreground_dice'))}, IoU {number(best.get('iou'))}"
    rows = [("Best epoch", text)]
    if entry and class_dice(entry):
        rows.append(("Dice by class", class_dice(entry)))
    start = next((e for e in events if e.get("event") == "start"), None)
    if start:
        device = f"{start.get('device')}, threads: {start.get('threads')}"
        rows.append(("Device", f"{device}; {start.get('parameters')} parameters"))
    return rows


def _curves(events: list[dict[str, Any]]) -> list[str]:
    epochs = [event for event in events if event.get("event") == "epoch"]
    lines = []
    for wanted in CHARTS:
        curves = {
            NAMES[key]: [(e["epoch"], e[key]) for e in epochs if _is_number(e.get(key))]
            for key in wanted
        }
        drawn = chart(curves, "epoch", list(wanted.values()))
        lines += ["", *drawn] if drawn else []
    return lines


def repeat_command(past: Past, trial: int, events: list[dict[str, Any]]) -> str:
    """One line to paste: a new folder with the trial's inputs, and in it the trainer, or the
    command that the study ran.

    The configuration names its network file beside it, so that both are copied. Device and threads
    are those of the trial: on a CPU its numbers come again. "" where its inputs are gone, or
    nothing tells what the study ran.
    """
    folder = run_folder_of(past, trial)
    inputs = [folder / name for name in INPUTS] + sorted(folder.glob("*.py"))
    if not past.options or not all(path.is_file() for path in inputs):
        return ""
    name, count = f"again-{past.name}-{trial}", 1
    while Path(name).exists():
        count += 1
        name = f"again-{past.name}-{trial}-{count}"
    new = shlex.quote(name)
    start = next((e for e in events if e.get("event") == "start"), {})
    device = " --device cpu" if start.get("device") == "CPU" else ""
    threads = start.get("threads")
    threads = f" --threads {threads}" if isinstance(threads, int) else ""
    copied = f"mkdir {new} && cp {' '.join(paste.shown(path) for path in inputs)} {new}"
    if command := past.options.get("trial-command"):
        words = [word.replace(CONFIG, INPUTS[0]) for word in shlex.split(str(command))]
        return f"{copied} && (cd {new} && {shlex.join(words)})"
    train = f"{paste.trainer('trainer')} --config={new}/config.json --run-folder {new}"
    return f"{copied} && {train}{device}{threads}"
