"""Prepared volumes as the data of a study: train.h5, validation.h5 and test.h5 of a folder.

What `python -m trainer.prepare` wrote. The parts are drawn already, by patient; a study takes them
as they are, and the configuration beside them is its base.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from study.settings import Settings
from trainer.data.labels import MaskClass
from trainer.data.masks import Masks
from trainer.data.split import Parts
from trainer.data.volumes.volume_file import Case, Header, is_volume_file, open_volumes
from trainer.errors import InputError

PARTS = {"training": "train.h5", "validation": "validation.h5", "test": "test.h5"}
BASE_FILE = "config.json"
FINGERPRINT_FILE = "fingerprint.json"
NO_MEANING = {
    "image-size": "volumes are trained on in crops, whose size --config says",
    "augment": "the transforms of volumes are those of --config",
    "labels": "the volumes name their classes",
    "split": "prepared volumes are split already",
    "group-by": "prepared volumes are split already",
}
"""Options that say nothing of prepared volumes, and why."""


def holds_volumes(folder: Path) -> bool:
    """Whether a folder has prepared volumes."""
    return is_volume_file(folder / PARTS["training"])


@dataclass(frozen=True)
class VolumeDataset:
    """The cases of a folder by part; `test` may be empty, or without labels."""

    folder: Path
    header: Header
    parts: dict[str, list[Case]]
    fingerprint: str

    splits = False
    """Whether trials read a split file; each part has a file of its own."""

    @property
    def masks(self) -> Masks:
        """What labels mean: their values are the numbers of the classes."""
        classes = [
            MaskClass(name=name, values=[number]) for number, name in enumerate(self.header.classes)
        ]
        return Masks(values=list(range(len(classes))), classes=classes)

    @property
    def channels(self) -> int:
        """Of a network for these volumes."""
        return len(self.header.channels)

    @property
    def test_has_truth(self) -> bool:
        """Whether there are test cases that can be scored."""
        return bool(self.parts["test"]) and self.parts["test"][0].has_label

    @property
    def files(self) -> dict[str, Path]:
        """The file of each part that has cases."""
        return {
            part: (self.folder / name).resolve() for part, name in PARTS.items() if self.parts[part]
        }

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What trials read."""
        return tuple(self.files.values())

    def trial_data(self, settings: Settings, split: Path | None, foreign: bool) -> dict[str, Any]:
        """Where a trial reads them."""
        chosen = "test" if settings.select_on == "test" else "validation"
        return {
            "type": "hdf5",
            "input_path": str(self.files["training"]),
            "test_input_path": str(self.files[chosen]),
        }

    def test_data(
        self,
        settings: Settings,
        near: Callable[[Path], str],
        split: str | None,
        output: str | None,
        sized: bool,
    ) -> dict[str, Any]:
        """Where the test cases are, or where there are none those of the validation; see
        `render_test`."""
        own = (settings.base or {}).get("data", {})
        return {
            "type": "hdf5",
            "test_input_path": near(self.files.get("test") or self.files["validation"]),
            **({"test_output_path": output} if output else {}),
            "test_batch_size": own.get("test_batch_size", 1),
        }

    def seen(self, settings: Settings) -> str:
        """What the network sees at a time."""
        own = (settings.base or {}).get("data", {}).get("patches") or {}
        return "x".join(map(str, own.get("size") or ["?"])) + " voxels"

    def own_parts(self) -> Parts:
        """The cases of each part by name."""
        names = {part: [case.name for case in cases] for part, cases in self.parts.items()}
        return Parts(**names)

    def rows(self, parts: Parts, chosen: str) -> list[tuple[str, str]]:
        """What is told of them; `chosen` names the part that trials are chosen on."""
        counts = {part: len(names) for part, names in parts.model_dump().items()}
        cases = [case for part in self.parts.values() for case in part]
        shapes = sorted((case.grid.shape for case in cases), key=prod)
        smallest, largest = ("x".join(map(str, shape)) for shape in (shapes[0], shapes[-1]))
        spacing = self.header.preparation.spacing_mm
        told = " x ".join(f"{mm:g}" for mm in spacing) + " mm" if spacing else "each case its own"
        nothing = self.score_of_nothing(self.parts[chosen])
        test = "" if self.test_has_truth else " (not scored)"
        return [
            (
                "Cases",
                f"{len(cases)}: {counts['training']} training, {counts['validation']} validation, "
                f"{counts['test']} test{test}; chosen on {chosen}",
            ),
            ("Channels", ", ".join(self.header.channels)),
            ("Sizes, spacing", f"{smallest} to {largest} voxels, {told}"),
            ("Classes", ", ".join(f"{name} {share:.2%}" for name, share in self.shares())),
            ("Predicting nothing scores", f"accuracy {nothing:.3f}, foreground Dice about 0"),
        ]

    def shares(self) -> list[tuple[str, float]]:
        """Each class with its share of all labelled voxels."""
        totals = [0] * len(self.header.classes)
        for cases in self.parts.values():
            for case in cases:
                totals = [a + b for a, b in zip(totals, case.voxels, strict=True)]
        every = max(1, sum(totals))
        return [(n, t / every) for n, t in zip(self.header.classes, totals, strict=True)]

    def score_of_nothing(self, cases: Sequence[Case]) -> float:
        """Accuracy of predicting background everywhere, the mean over cases."""
        scores = []
        for case in cases:
            foreground = sum(case.voxels[1:])
            every = sum(case.voxels)
            background = 2 * (every - foreground) / (2 * every - foreground) if every else 1.0
            absent = sum(count == 0 for count in case.voxels[1:])
            scores.append((background + absent) / len(case.voxels))
        return sum(scores) / max(1, len(scores))


def read_volumes(folder: Path, select_on: str) -> VolumeDataset:
    """Opens the files of prepared volumes; raises InputError for what a study cannot use."""
    parts: dict[str, list[Case]] = {}
    header: Header | None = None
    for part, name in PARTS.items():
        path = folder / name
        if not path.exists():
            parts[part] = []
            continue
        volumes = open_volumes(path)
        header = header or volumes.header
        if volumes.header != header:
            found = f"is prepared in another way than {PARTS['training']}"
            raise InputError(str(path), found, "files of one preparation")
        parts[part] = volumes.cases
    assert header
    for part in ("training", "validation" if select_on == "validation" else "test"):
        where = str(folder / PARTS[part])
        if not parts[part]:
            raise InputError(where, "has no case", "one or more")
        if bare := next((case for case in parts[part] if not case.has_label), None):
            raise InputError(where, f"{bare.name} has no label", "labels for all cases")
    return VolumeDataset(folder, header, parts, _fingerprint(folder, header, parts))


def _fingerprint(folder: Path, header: Header, parts: dict[str, list[Case]]) -> str:
    """Of the sources where the preparation left it, of what the files say of their cases."""
    digest = hashlib.sha256(header.model_dump_json().encode())
    try:
        told = json.loads((folder / FINGERPRINT_FILE).read_text(encoding="utf-8"))
        digest.update(str(told.get("sha256")).encode())
    except (OSError, ValueError, AttributeError):
        pass
    for part, cases in parts.items():
        for case in cases:
            digest.update(f"{part} {case.name} {case.grid.shape} {case.voxels}".encode())
    return digest.hexdigest()
