"""Arrays of slices as the data of a study: imgs_train.npy, msks_train.npy and those of the test.

What `python -m trainer.prepare brats-slices` wrote, or Intel's own converter. Which patient a slice
is of stands in slices.json. Without --config the base is configs/brain_slices.json.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.settings import PROGRAM_FOLDER, Settings, read_base
from trainer.config import Slices
from trainer.data.masks import Masks
from trainer.data.slice_files import (
    NAMES_FILE,
    ScanRows,
    SliceFiles,
    list_slices,
    open_array,
    parse_slices,
    row_name,
    scans_of,
)
from trainer.data.split import Parts, row_ranges
from trainer.errors import InputError

IMAGES = {"train": "imgs_train.npy", "test": "imgs_test.npy"}
MASKS = {"train": "msks_train.npy", "test": "msks_test.npy"}
BASE = PROGRAM_FOLDER / "configs/brain_slices.json"
FEWEST_SLICES = 10

SHARE = 0.15
"""Of the patients, for validation; and for test where there are no test arrays."""

LARGEST_BATCH, SMALLEST_BATCH, FEWEST_STEPS = 32, 4, 30
"""The base's 1024 slices of 128x128 need about 36 GB; an epoch should have so many steps."""

ROWS_AT_ONCE, ROWS_OF_FINGERPRINT = 256, 256

NO_MEANING = {
    "image-size": "arrays of slices have the size that they were prepared with",
    "augment": "arrays of slices are not augmented",
    "labels": "data.slices.target of --config says what is foreground",
    "group-by": "the slices of a patient stay together as it is",
}
"""Options that say nothing of slices, and why."""


def holds_slices(folder: Path) -> bool:
    """Whether a folder has arrays of slices."""
    return any((folder / name).is_file() for name in (*IMAGES.values(), *MASKS.values()))


def base_of(folder: Path) -> dict[str, Any]:
    """configs/brain_slices.json with batches that fit the slices of `folder`."""
    base = read_base(BASE)
    rows = len(open_array(folder / IMAGES["train"]))
    batch = max(SMALLEST_BATCH, min(LARGEST_BATCH, rows // FEWEST_STEPS))
    base["data"] |= {"batch_size": batch, "test_batch_size": 2 * batch}
    return base


@dataclass(frozen=True)
class SliceArrays:
    """The two arrays of a part: `foreground` counts the pixels of the target in each slice (None
    without masks), `scans` are None where nobody knows."""

    files: SliceFiles
    foreground: NDArray[np.int64] | None
    names: list[str]
    scans: list[ScanRows] | None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def patients(self) -> list[str]:
        """By their first scan."""
        return list(dict.fromkeys(one.patient for one in self.scans or ()))

    def patients_with(self, names: list[str]) -> dict[str, list[str]]:
        """Those that have some of these slices, with the ranges of their rows."""
        wanted = {int(name) for name in names}
        rows: dict[str, list[int]] = {}
        for one in self.scans or ():
            if own := [row for row in range(one.first, one.last) if row in wanted]:
                rows.setdefault(one.patient, []).extend(own)
        return {patient: row_ranges(own) for patient, own in rows.items()}


@dataclass(frozen=True)
class SliceDataset:
    """The slices of a folder; `test` is None where it has no test arrays."""

    folder: Path
    slices: Slices
    train: SliceArrays
    test: SliceArrays | None
    fingerprint: str

    splits = True
    """Whether trials read a split file."""

    masks = Masks(threshold=0.5, values=[0, 1])
    """Of the union of the planes that are the target."""

    @property
    def channels(self) -> int:
        """Of a network for these slices."""
        return len(self.train.files.channels)

    @property
    def test_has_truth(self) -> bool:
        """Whether test slices can be scored; else they are predicted only."""
        return self.test is None or self.test.foreground is not None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What trials read."""
        names = (*IMAGES.values(), *MASKS.values(), NAMES_FILE)
        return tuple(self.folder / name for name in names if (self.folder / name).exists())

    def trial_data(self, settings: Settings, split: Path | None, foreign: bool) -> dict[str, Any]:
        """Where a trial reads them."""
        tested = settings.select_on == "test"
        return {
            "type": "numpy",
            **_paths(self.train, "", str),
            **(_paths(self.test or self.train, "test_", str) if tested else {}),
            **({"split": str(split)} if split else {}),
            **self._reading(settings),
        }

    def test_data(
        self,
        settings: Settings,
        near: Callable[[Path], str],
        split: str | None,
        output: str | None,
        sized: bool,
    ) -> dict[str, Any]:
        """Where the test slices are, with one part only all slices, of which the split names some;
        see `render_test`."""

        def in_folder(path: Path) -> str:  # a link stays one: slices.json lies beside it
            return f"{near(path.parent)}/{path.name}"

        return {
            "type": "numpy",
            **_paths(self.test or self.train, "test_", in_folder),
            **({"test_output_path": output} if output else {}),
            **({"split": split} if split else {}),
            **self._reading(settings),
        }

    def _reading(self, settings: Settings) -> dict[str, Any]:
        own = (settings.base or {}).get("data", {})
        batch = own.get("test_batch_size", 2 * settings.batch_size)
        return {"test_batch_size": batch, "slices": own.get("slices", {})}

    def seen(self, settings: Settings) -> str:
        """What the network sees at a time."""
        height, width = self.train.files.shape
        return f"{width}x{height} pixels"

    def parts_for(self, seed: int, select_on: str) -> Parts:
        """Whole patients for each part, drawn with the seed. Where patients are unknown or too few:
        successive slices, those of training first."""
        wanted = [
            *(["validation"] if select_on == "validation" else []),
            *(["test"] if self.test is None else []),
        ]
        part_of = dict.fromkeys(self.train.names, "training")
        if self.by_patient(len(wanted)):
            patients = self.train.patients
            random.Random(f"split {seed}").shuffle(patients)
            each = max(1, round(SHARE * len(patients)))
            for part in wanted:
                chosen, patients = set(patients[:each]), patients[each:]
                for scan in self.train.scans or ():
                    if scan.patient in chosen:
                        names = self.train.names[scan.first : scan.last]
                        part_of |= dict.fromkeys(names, part)
        else:
            each = max(1, round(SHARE * len(self.train)))
            left = len(self.train) - each * len(wanted)
            for n, part in enumerate(wanted):
                names = self.train.names[left + n * each : left + (n + 1) * each]
                part_of |= dict.fromkeys(names, part)
        found: dict[str, list[str]] = {"training": [], "validation": [], "test": []}
        for name, part in part_of.items():
            found[part].append(name)
        if self.test is not None:
            found["test"] = self.test.names
        return Parts(**found)

    def by_patient(self, parts: int) -> bool:
        """Whether there are patients enough to hold some out for so many parts."""
        return len(self.train.patients) > parts

    def patients_of(self, parts: Parts) -> dict[str, dict[str, list[str]]]:
        """The patients of each part, see `Split.patients`; nothing where they are unknown."""
        if self.train.scans is None:
            return {}
        found = {
            part: self.train.patients_with(names) for part, names in parts.model_dump().items()
        }
        if self.test is not None:
            found["test"] = self.test.patients_with(parts.test)
        return found

    def check_parts(self, parts: Parts) -> None:
        """Raises InputError where nothing can be learned from a part, or chosen on it."""
        for part, names in (("training", parts.training), ("validation", parts.validation)):
            if names and not self._counts(names, part).any():
                found = f"no slice of the {part} part has foreground"
                fix = "take another --seed, more patients, or another target in --config"
                raise InputError(str(self.folder / MASKS["train"]), found, "some with it", fix)

    def _counts(self, names: list[str], part: str) -> NDArray[np.int64]:
        """Pixels of foreground in each of these slices."""
        arrays = self.test if part == "test" and self.test is not None else self.train
        if arrays.foreground is None:
            return np.zeros(len(names), np.int64)
        return arrays.foreground[[int(name) for name in names]]

    def rows(self, parts: Parts, chosen: str) -> list[tuple[str, str]]:
        """What is told of them; `chosen` names the part that trials are chosen on."""
        size = prod(self.train.files.shape)
        named = {part: len(names) for part, names in parts.model_dump().items() if names}
        counts = ", ".join(f"{count} {part}" for part, count in named.items())
        unscored = "" if self.test_has_truth else " (without masks: predicted only)"
        with_truth = [part for part in named if part != "test" or self.test_has_truth]
        pixels = np.concatenate([self._counts(getattr(parts, one), one) for one in with_truth])
        share = pixels.sum() / max(1, len(pixels) * size)
        own = self._counts(getattr(parts, chosen), chosen)
        foreground = float(own.sum()) / max(1, len(own) * size)
        background = 2 * (1 - foreground) / (2 - foreground)
        nothing = (background + (foreground == 0)) / 2
        channels = self.slices.channels or "all"
        told = f"{', '.join(map(str, channels))}" if channels != "all" else f"all {self.channels}"
        return [
            ("Slices", f"{sum(named.values())}: {counts}{unscored}; chosen on {chosen}"),
            ("Patients", self._told_of_patients(parts)),
            ("Channels, target", f"{told}; {' and '.join(map(str, self.slices.target))}"),
            ("Foreground", f"{share:.2%} of the pixels; {(pixels == 0).sum()} slices have none"),
            ("Predicting nothing scores", f"accuracy {nothing:.3f}, foreground Dice 0"),
        ]

    def _told_of_patients(self, parts: Parts) -> str:
        patients = self.patients_of(parts)
        told = ", ".join(f"{len(own)} {part}" for part, own in patients.items() if own)
        if not patients:
            told = f"unknown, there is no {NAMES_FILE} that tells them"
        learnt = {*patients.get("training", []), *patients.get("validation", [])}
        if shared := learnt & set(patients.get("test", [])):
            many = "TEST PATIENT IS" if len(shared) == 1 else "TEST PATIENTS ARE"
            told += f"; {len(shared)} {many} TRAINED ON, too (split by slice)"
        inside = set(patients.get("training", [])) & set(patients.get("validation", []))
        if parts.validation and (not patients or inside):
            told += "; validation is by slice: its neighbours are trained on, so it is optimistic"
        return told


def _paths(arrays: SliceArrays, key: str, near: Callable[[Path], str]) -> dict[str, Any]:
    targets = arrays.files.targets
    paths = {f"{key}input_path": near(arrays.files.inputs)}
    return {**paths, f"{key}target_path": near(targets)} if targets else paths


def read_slices(folder: Path, base: dict[str, Any] | None) -> SliceDataset:
    """Opens the arrays of a folder; raises InputError for what a study cannot use. `base` says
    which channels are seen, and what the target is."""
    told = (base or {}).get("data", {}).get("slices", {})
    slices = parse_slices(told, "data.slices")
    folder = folder.resolve()
    train = _arrays(folder, "train", slices, truth=True)
    if len(train) < FEWEST_SLICES:
        found = f"has {len(train)} slices"
        raise InputError(str(train.files.inputs), found, f"at least {FEWEST_SLICES}")
    assert train.foreground is not None
    if not train.foreground.any():
        found = f"no slice has {' or '.join(map(str, slices.target))}"
        raise InputError(str(train.files.targets), found, "some with foreground")
    test = None
    if any((folder / names["test"]).exists() for names in (IMAGES, MASKS)):
        test = _arrays(folder, "test", slices, truth=(folder / MASKS["test"]).exists())
        if test.files.shape != train.files.shape:
            sizes = [f"{w}x{h}" for h, w in (test.files.shape, train.files.shape)]
            found = f"has slices of {sizes[0]} pixels, {IMAGES['train']} of {sizes[1]}"
            raise InputError(str(test.files.inputs), found, "arrays of one preparation")
        if test.files.channels != train.files.channels:
            found = f"has other channels than {IMAGES['train']}"
            raise InputError(str(test.files.inputs), found, "arrays of one preparation")
    parts = [train] if test is None else [train, test]
    return SliceDataset(folder, slices, train, test, _fingerprint(folder, parts))


def _arrays(folder: Path, part: str, slices: Slices, truth: bool) -> SliceArrays:
    inputs, targets = folder / IMAGES[part], folder / MASKS[part]
    rows = list_slices(str(inputs), str(targets) if truth else None, slices)
    files = rows[0].files
    _check_numbers(files)
    return SliceArrays(
        files,
        _foreground(files) if truth else None,
        [row_name(row.row) for row in rows],
        scans_of(inputs, len(rows)),
    )


def _check_numbers(files: SliceFiles) -> None:
    """Raises InputError for a slice with values that are not a number, or infinite."""
    for path, planes in ((files.inputs, files.channels), (files.targets, files.planes)):
        array = open_array(path) if path else np.zeros((0, 1, 1, 0))
        for first in range(0, len(array) if array.dtype.kind == "f" else 0, ROWS_AT_ONCE):
            rows = np.asarray(array[first : first + ROWS_AT_ONCE])[..., list(planes)]
            sums = rows.sum(axis=(1, 2, 3), dtype=np.float64)
            if not np.isfinite(sums).all():
                row = first + int(np.flatnonzero(~np.isfinite(sums))[0])
                found = f"slice {row} has values that are not a number, or infinite"
                raise InputError(str(path), found, "numbers")


def _foreground(files: SliceFiles) -> NDArray[np.int64]:
    """Pixels of the target in each slice."""
    assert files.targets
    masks = open_array(files.targets)
    counts = np.zeros(len(masks), np.int64)
    for first in range(0, len(masks), ROWS_AT_ONCE):
        rows = np.asarray(masks[first : first + ROWS_AT_ONCE])[..., list(files.planes)] > 0
        counts[first : first + ROWS_AT_ONCE] = rows.any(axis=3).sum(axis=(1, 2))
    return counts


def _fingerprint(folder: Path, parts: list[SliceArrays]) -> str:
    """Of what slices.json says, and of the shapes and some slices of each array."""
    digest = hashlib.sha256()
    if (folder / NAMES_FILE).exists():
        digest.update((folder / NAMES_FILE).read_bytes())
    for part in parts:
        for path in (part.files.inputs, part.files.targets):
            if path is None:
                continue
            array = open_array(path)
            digest.update(f"{path.name} {array.shape} {array.dtype}".encode())
            count = min(len(array), ROWS_OF_FINGERPRINT)
            for n in range(count):
                digest.update(np.ascontiguousarray(array[n * len(array) // count]).tobytes())
    return digest.hexdigest()
