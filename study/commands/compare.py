"""Two studies beside each other: settings, best so far, and the paired difference of their models.

The difference is taken image by image of the same test images, which must be in both studies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from study.commands.chart import chart
from study.commands.history import Past, read_object
from study.records import BEST_FOLDER, CONFIG_FILE, SPLIT_FILE, move_aside
from study.statistics import FEWEST, RESAMPLES, Paired, paired
from study.view import number
from trainer.data.split import patient_of
from trainer.errors import InputError
from trainer.events import RESULT_FILE
from trainer.metrics import Counts, ImageScore, VolumeScore, accuracy
from trainer.picture import is_ours, save_picture

NOT_SETTINGS = ("launcher", "docker-image", "gpu", "threads", "timeout", "keep-checkpoints")
PARTS = ("training", "validation")


def compare(a: Past, b: Past, here: Path) -> None:
    """Prints the comparison and draws it; raises InputError where no pair can be made."""
    scores = _same_images(a, b)
    print(f"A is {a.name} ({a.state}), B is {b.name} ({b.state})\n")
    rows = _differences(a, b)
    head = ["settings that differ", "A", "B"]
    print(tabulate(rows or [["none", "", ""]], headers=head, **_TABLE))
    metric = a.metric if a.metric == b.metric else "accuracy"
    for unit, place in (("epochs", 0), ("hours", 1)):
        curves = {past.name: best_so_far(past, metric)[place] for past in (a, b)}
        print(f"\nbest {metric} so far against {unit} of training")
        print("\n".join(chart(curves, unit, "AB")))
    print(f"\n{_difference_table(a, b, scores)}")
    _draw(a, b, metric, here)


_TABLE: dict[str, Any] = {"tablefmt": "simple", "disable_numparse": True, "maxcolwidths": 60}


# ---- settings ----
def _differences(a: Past, b: Past) -> list[list[str]]:
    keys = sorted({*a.options, *b.options} - set(NOT_SETTINGS))
    rows = [
        [f"--{key}", _told(a.options.get(key)), _told(b.options.get(key))]
        for key in keys
        if a.options.get(key) != b.options.get(key)
    ]
    networks = [json.dumps(past.origin.get("network"), sort_keys=True) for past in (a, b)]
    if networks[0] != networks[1] and a.options.get("layers") == b.options.get("layers"):
        rows.append(["content of --layers", *networks])
    classes = [_classes(past) for past in (a, b)]
    if classes[0] != classes[1]:
        rows.append(["content of --labels", *map(_named, classes)])
    parts = [read_object(past.folder / SPLIT_FILE).get("parts") or {} for past in (a, b)]
    for part in PARTS:
        names = [set(p.get(part) or []) for p in parts]
        if names[0] != names[1]:
            rows.append([f"{part} images", *(f"{len(n)}, not the same" for n in names)])
    return rows


def _classes(past: Past) -> list[dict[str, Any]]:
    """The classes of the masks; none where two values are background and foreground."""
    masks = read_object(past.folder / SPLIT_FILE).get("masks")
    found = masks.get("classes") if isinstance(masks, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _meaning(classes: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """What the masks hold for each class, whatever it is called."""
    return [tuple(sorted(map(str, _held(one)))) for one in classes]


def _held(one: dict[str, Any]) -> list[Any]:
    return [*(one.get("values") or []), *(one.get("colours") or [])]


def _named(classes: list[dict[str, Any]]) -> str:
    told = [f"{one.get('name')} {' or '.join(map(str, _held(one)))}" for one in classes]
    return ", ".join(told) or "background and foreground"


def _told(value: Any) -> str:
    return "-" if value is None else str(value)


# ---- best so far ----
def best_so_far(past: Past, metric: str) -> tuple[list[tuple[float, float]], ...]:
    """The best value as steps, against epochs and against hours of training of all trials.

    As a study counts: a trial counts when it is complete.
    """
    key = "value" if metric == past.metric else "max_acc"
    epochs = seconds = 0.0
    best: float | None = None
    by_epochs: list[tuple[float, float]] = []
    by_hours: list[tuple[float, float]] = []
    for entry in past.entries:
        epochs += float(entry.get("epochs") or 0)
        seconds += float(entry.get("seconds") or 0)
        value = entry.get(key)
        if entry["state"] == "COMPLETE" and value is not None:
            best = value if best is None else max(best, value)
        if best is not None:
            by_epochs.append((epochs, best))
            by_hours.append((seconds / 3600, best))
    return by_epochs, by_hours


# ---- the paired difference ----
Score = ImageScore | VolumeScore


def _same_images(a: Past, b: Past) -> list[tuple[Score, Score]]:
    """Scores of each test image by both; raises InputError with the first reason against it."""
    where = f"'{a.name}' and '{b.name}'"
    accepted = "two studies of the same data, tested on the same images"
    if a.name == b.name:
        raise InputError(where, "are one study", "two studies")
    for past in (a, b):
        if past.data_checksum is None:
            raise InputError(where, f"'{past.name}' has no record of its data", accepted)
    if a.data_checksum != b.data_checksum:
        found = "cannot be paired: the images or masks are not the same (checksum of the data)"
        raise InputError(where, found, accepted)
    classes = [_classes(past) for past in (a, b)]
    if _meaning(classes[0]) != _meaning(classes[1]):
        found = "cannot be paired: the classes of their masks differ: "
        found += f"{_named(classes[0])}; against {_named(classes[1])}"
        raise InputError(where, found, "two studies with the same --labels")
    scores = [{s.name: s for s in _test_scores(past)} for past in (a, b)]
    if scores[0].keys() != scores[1].keys():
        both = len(scores[0].keys() & scores[1].keys())
        counts = f"{len(scores[0])} and {len(scores[1])} with {both} in common"
        found = f"cannot be paired: the splits differ, they test on other images ({counts})"
        fix = f"give the second study the first one's: --split runs/{a.name}/split.json"
        raise InputError(where, found, accepted, fix)
    if any(len(score.counts) != len(scores[1][name].counts) for name, score in scores[0].items()):
        found = "cannot be paired: their scores have not as many classes"
        raise InputError(where, found, "two studies with the same --labels")
    return [(score, scores[1][name]) for name, score in scores[0].items()]


def _test_scores(past: Past) -> list[Score]:
    best = past.best
    result = read_object(past.folder / f"test-{best.trial:04d}" / RESULT_FILE) if best else {}
    images = (result.get("evaluation") or {}).get("images")
    if not images:
        accepted = "a study that ended, and scored test images with masks by itself"
        found = "has no scores of the test images by its best trial"
        never = _never_scored(past)
        fix = "" if never else f"let it end: --study-name '{past.name}' --resume"
        raise InputError(f"study '{past.name}'", found + never, accepted, fix)
    return [
        ImageScore.from_dict(image) if "empty" in image else VolumeScore.from_dict(image)
        for image in images
    ]


def _never_scored(past: Past) -> str:
    """Why there will be no scores, however long the study runs; "" where they may come."""
    if past.options.get("trial-command"):
        return ": what its command (--trial-command) trained, only the command can use"
    config = read_object(past.folder / BEST_FOLDER / CONFIG_FILE).get("neural_network")
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict):
        return ""
    if data.get("type") in ("images", "numpy") and "test_target_path" not in data:
        what = "images" if data["type"] == "images" else "slices"
        return f": its test {what} have no masks"
    if data.get("type") == "images" and "split" not in data:
        return ": its trials ran in a foreign image, which tells no score of an image"
    return ""


def _difference_table(a: Past, b: Past, scores: list[tuple[Score, Score]]) -> str:
    told = read_object(a.folder / SPLIT_FILE).get("patients")
    patients = patient_of(told.get("test") or {}) if isinstance(told, dict) else {}
    what = "slices" if patients else "images"
    lesions = [pair for pair in scores if not (isinstance(pair[0], ImageScore) and pair[0].empty)]
    if isinstance(scores[0][0], VolumeScore):  # every case counts once, as in the study
        what = "cases"
        rows = [
            _row("accuracy", scores, lambda score: accuracy(score.counts), np.mean),
            _row("foreground Dice", scores, _dice, np.mean),
        ]
    else:
        rows = [_row(f"accuracy, all {what}", scores, _pixels, _pooled_accuracy, patients)]
    if lesions and what != "cases":
        name = f"foreground Dice, {what} with a lesion"
        rows.append(_row(name, lesions, _dice, np.mean, patients))
    unit = "patients" if patients else what
    better = sum(y.dice > x.dice for x, y in lesions)
    worse = sum(y.dice < x.dice for x, y in lesions)
    table = tabulate(
        rows,
        headers=[f"test {what}", what, "A", "B", "B - A", "95 % interval", "p"],
        **_TABLE,
    )
    return "\n".join(
        [
            table,
            f"Dice of B is higher on {better} {what}, lower on {worse}, equal on "
            f"{len(lesions) - better - worse}.",
            f"Interval: bootstrap over {unit} ({FEWEST} or more), {RESAMPLES} samples. p: "
            f"two-sided paired permutation test (A and B exchanged {unit.removesuffix('s')} by "
            f"{unit.removesuffix('s')}).",
            f"Best trials: A {a.best.trial if a.best else '?'}, B {b.best.trial if b.best else '?'}"
            ". One training each: the difference is one of these two models, not of settings.",
        ]
    )


def _row(
    name: str,
    pairs: list[tuple[Score, Score]],
    numbers: Callable[[Score], Any],
    metric: Callable[[NDArray[np.float64]], Any],
    patients: dict[str, str] | None = None,
) -> list[str]:
    columns = [np.array([numbers(pair[side]) for pair in pairs], np.float64) for side in (0, 1)]
    names = [pair[0].name for pair in pairs]
    found: Paired = paired(columns[0], columns[1], metric, names, patients)
    interval = "{:+.3f} to {:+.3f}".format(*found.interval) if found.interval else "-"
    p = f"{found.p:.4f}" if len(pairs) > 1 else "-"
    values = (number(found.a), number(found.b), f"{found.b - found.a:+.3f}")
    return [name, str(len(pairs)), *values, interval, p]


def _dice(score: Score) -> float:
    return score.dice


def _pixels(score: Score) -> tuple[int, ...]:
    return tuple(n for counts in score.counts for n in astuple(counts))


def _pooled_accuracy(counts: NDArray[np.float64]) -> float:
    return accuracy([Counts(*map(int, one)) for one in counts.sum(0).reshape(-1, 4)])


# ---- the picture ----
def _draw(a: Past, b: Past, metric: str, here: Path) -> None:
    if find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed")
        return
    from matplotlib.figure import Figure

    path = here / f"compare-{a.name}-{b.name}.png"
    if path.exists() and not is_ours(path):
        print(f"{path.name} was not made here; it is now {move_aside(path).name}")
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    for axes, unit, place in zip(figure.subplots(1, 2), ("epochs", "hours"), (0, 1), strict=True):
        for past in (a, b):
            curve = best_so_far(past, metric)[place]
            axes.step([x for x, _ in curve], [y for _, y in curve], where="post", label=past.name)
        axes.set_xlabel(f"{unit} of training, all trials")
        axes.set_ylabel(f"best {metric} so far")
        axes.legend()
    save_picture(figure, path)
    print(f"Picture: {path.name}")
