"""Pictures of slices of brains: predictions beside them and their truth, or the truth alone.

    review = gather_slices(open_slice_review(Path("out/imgs_test_predictions.npy")), most=12)

Reads NAME_predictions.npy and output_<epoch>.h5 with the arrays that they are of, which the files
beside them name. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from trainer.cases import Case, Review, classes, scored
from trainer.config import Slices
from trainer.data.slice_files import (
    CHANNELS,
    ScanRows,
    SliceFiles,
    list_slices,
    names_of,
    open_array,
    parse_slices,
    row_name,
    scans_of,
)
from trainer.data.volumes.planes import grey
from trainer.errors import InputError
from trainer.overlay import overlay
from trainer.picture import save_picture

PREDICTIONS = "_predictions"
RECORD_FILE = "predict.json"
NAMES = ["background", "target"]
COLUMNS, PANEL_INCHES = 4, 2.4
ACCEPTED = "output_<epoch>.h5 of a run on slices, or NAME_predictions.npy"


@dataclass(frozen=True)
class DrawnSlices:
    """The arrays of slices that are drawn, and which rows are of which scan (None: unknown)."""

    files: SliceFiles
    scans: list[ScanRows] | None

    def name(self, row: int) -> str:
        """What a slice is called: its scan and its place there, else its row."""
        for one in self.scans or ():
            if one.first <= row < one.last:
                return f"{one.scan}, slice {one.first_slice + row - one.first}"
        return row_name(row)

    def image(self, row: int) -> NDArray[np.uint8]:
        """(H, W), the first channel that the network sees."""
        values = open_array(self.files.inputs)[row, :, :, self.files.channels[0]]
        return grey(np.asarray(values, np.float32))

    def truth(self, row: int) -> NDArray[np.uint8] | None:
        """(H, W) of 0 and 1; None without masks."""
        if self.files.targets is None:
            return None
        planes = open_array(self.files.targets)[row][..., list(self.files.planes)]
        return np.asarray((planes > 0).any(axis=2), np.uint8)


@dataclass(frozen=True)
class SliceReview:
    """Predictions of some rows: `read` gives (outputs, H, W) of a row."""

    arrays: DrawnSlices
    rows: list[int]
    read: Callable[[int], NDArray[np.float32]]
    threshold: float

    def case(self, row: int) -> Case:
        """All that is drawn of a slice, with its score where there is truth."""
        probability, name = self.read(row), self.arrays.name(row)
        if probability.shape[1:] != self.arrays.files.shape:
            found = f"the prediction of {name} is {probability.shape[1:]}"
            accepted = f"slices of {self.arrays.files.shape}, like {self.arrays.files.inputs}"
            raise InputError("predictions", found, accepted)
        image = self.arrays.image(row)[..., None].repeat(3, axis=2)
        predicted, truth = classes(probability, self.threshold), self.arrays.truth(row)
        score = None if truth is None else scored(name, predicted, truth, len(NAMES))
        return Case(name, image, probability, predicted, truth, score)


def of_slices(path: Path) -> bool:
    """Whether a file is of arrays of slices: .npy, or predictions that say so."""
    if path.suffix == ".npy":
        return True
    try:
        with h5py.File(path, "r") as file:
            return "slices" in file.attrs
    except OSError:
        return False


def open_slice_arrays(files: SliceFiles) -> DrawnSlices:
    """With what slices.json beside them says."""
    return DrawnSlices(files, scans_of(files.inputs, len(open_array(files.inputs))))


def open_slice_review(
    path: Path, inputs: Path | None = None, targets: Path | None = None
) -> SliceReview:
    """The predictions at `path` with the arrays that they are of; the files `inputs` and `targets`
    replace those that are named. Raises InputError for what is not there, or cannot be drawn."""
    if path.suffix != ".npy":
        return _of_hdf5(path, inputs, targets)
    array = open_array(path)
    stem = path.stem.removesuffix(PREDICTIONS)
    if stem == path.stem:
        raise InputError(str(path), "is no file of predictions", ACCEPTED)
    for beside in sorted(path.parent.glob("output_*.h5")):
        if not of_slices(beside) or stem not in _stems(beside):
            continue
        review = _of_hdf5(beside, inputs, targets)  # of an epoch: it says which rows, in order
        if len(review.rows) == len(array):
            place = {row: number for number, row in enumerate(review.rows)}

            def read(row: int, place: dict[int, int] = place) -> NDArray[np.float32]:
                return _planes(array[place[row]])

            return replace(review, read=read)
    told = _recorded(path, stem) if inputs is None else {}
    where = inputs or Path(str(told.get("inputs", "")))
    if not where.is_file():
        raise _no_inputs(path, where)
    arrays = _arrays(where, targets, told.get("slices"))
    rows = len(open_array(where))
    if len(array) != rows:
        found = f"has {len(array)} slices, {where} {rows}"
        raise InputError(str(path), found, "predictions of these slices")

    return SliceReview(arrays, list(range(rows)), lambda row: _planes(array[row]), 0.5)


def _planes(found: NDArray[np.floating]) -> NDArray[np.float32]:
    """(H, W, outputs) -> (outputs, H, W)."""
    return np.moveaxis(np.asarray(found, np.float32), 2, 0)


def _of_hdf5(path: Path, inputs: Path | None, targets: Path | None) -> SliceReview:
    with h5py.File(path, "r") as file:
        attributes = dict(file.attrs)
        names = list(file)
    where = inputs or _found(path, str(attributes.get("inputs", "")))
    if not where.is_file():
        raise _no_inputs(path, where)
    named = str(attributes.get("targets", ""))
    targets = targets or (_found(path, named) if named else None)
    try:
        told, rows = json.loads(str(attributes["slices"])), [int(name) for name in names]
        if [row_name(row) for row in rows] != names:
            raise ValueError
    except ValueError:
        raise InputError(str(path), "is no file of predictions of slices", ACCEPTED) from None
    arrays = _arrays(where, targets, told)
    count = len(open_array(where))
    if not rows or max(rows) >= count:
        found = f"predicts slice {max(rows, default=0)}, {where} has {count}"
        raise InputError(str(path), found, "predictions of these slices")

    def read(row: int) -> NDArray[np.float32]:
        with h5py.File(path, "r") as file:
            return np.asarray(file[row_name(row)], np.float32)

    return SliceReview(arrays, rows, read, float(attributes.get("threshold", 0.5)))


def _found(path: Path, named: str) -> Path:
    """A file that predictions name, from here or from beside them."""
    own = Path(named)
    places = (own, path.parent / own, path.parent.parent / own, path.parent / own.name)
    return next((place for place in places if place.is_file()), own)


def _stems(path: Path) -> set[str]:
    with h5py.File(path, "r") as file:
        return {Path(str(file.attrs.get(key, ""))).stem for key in ("inputs", "targets")}


def _recorded(path: Path, stem: str) -> dict[str, object]:
    """What predict.json beside says of the array: {"inputs", "slices"}; nothing where none is."""
    try:
        record = json.loads((path.parent / RECORD_FILE).read_text(encoding="utf-8"))
        source = Path(str(record["source"]))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(str(path.parent / RECORD_FILE), "is no record of predictions") from None
    array = source / f"{stem}.npy" if source.is_dir() else source
    if source.exists() and (array.suffix != ".npy" or not array.is_file()):
        found = f"is of the raw scan {stem}, and not of an array of slices"
        fix = f"open masks/{stem}.nii.gz beside it upon the scan, in a viewer of scans"
        raise InputError(str(path), found, "predictions of a .npy file", fix)
    return {"inputs": array, "slices": record.get("slices")}


def _no_inputs(path: Path, where: Path) -> InputError:
    found = f"its slices are not at '{where}'" if where.name else "does not say of which slices"
    fix = "name them: --inputs imgs_test.npy, and --targets msks_test.npy where there is truth"
    return InputError(str(path), found, fix=fix)


def _arrays(inputs: Path, targets: Path | None, told: object) -> DrawnSlices:
    """With the channels and planes in `told`; else flair (or the first channel) and the tumour."""
    if targets is None and inputs.name.startswith("imgs_"):
        beside = inputs.with_name(f"msks_{inputs.name.removeprefix('imgs_')}")
        targets = beside if beside.is_file() else None
    if isinstance(told, dict) and told.get("channels"):
        asked = {"channels": told["channels"], "target": told.get("target") or ["wt"]}
        slices = parse_slices(asked, f"predictions of {inputs}")
    else:
        flair = "flair" in names_of(inputs, "channels", CHANNELS)
        slices = Slices(channels=["flair" if flair else 0])
    rows = list_slices(str(inputs), str(targets) if targets else None, slices)
    return open_slice_arrays(rows[0].files)


def gather_slices(source: SliceReview, most: int) -> Review:
    """Scores all slices and reads the first `most`: the worst first, in the order of their rows
    without truth. Where there is nothing to find, any predicted pixel makes the Dice 0."""
    rows, scores = source.rows, []
    if source.arrays.files.targets:
        known = [(score, row) for row in rows if (score := source.case(row).score)]
        known.sort(key=lambda one: (one[0].dice, -one[0].false_pixels))
        scores, rows = [score for score, _ in known], [row for _, row in known]
    cases = [source.case(row) for row in rows[:most]]
    return Review(cases, scores, len(rows), source.threshold, NAMES, "slices")


def draw_truth(arrays: DrawnSlices, most: int, path: Path, title: str) -> str:
    """Writes a PNG with slices that have foreground, spread evenly over all; what to tell of it."""
    from matplotlib.figure import Figure

    every = range(len(open_array(arrays.files.inputs)))
    having = [row for row in every if (truth := arrays.truth(row)) is not None and truth.any()]
    chosen = [having[n * len(having) // most] for n in range(most)][: len(having)]
    if len(having) <= most:
        chosen = having
    lines = -(-len(chosen) // COLUMNS)
    size = (COLUMNS * PANEL_INCHES, lines * (PANEL_INCHES + 0.2) + 0.4)
    figure = Figure(figsize=size, dpi=100, layout="constrained", facecolor="white")
    grid = figure.subplots(max(1, lines), COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, row in zip(grid, chosen, strict=False):
        truth = arrays.truth(row)
        assert truth is not None
        axes.imshow(overlay(arrays.image(row)[..., None].repeat(3, axis=2), truth))
        axes.set_title(arrays.name(row), fontsize=8, parse_math=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    save_picture(figure, path)
    told = f"{len(chosen)} slices with their target, of {len(every)}"
    return f"{told} in {arrays.files.inputs.name}"
