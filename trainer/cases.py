"""Predictions beside their images and truth: read, scored and ordered, the worst first.

A predictions file holds one float32 dataset (C, H, W) an image, keyed by the image's name (its path
in the folder of inputs), and the attributes `inputs` and `targets` (folders; "" without truth),
`masks` (what mask values mean, as JSON), `threshold`, and `whole_images`: whether a prediction,
resized, lies upon its image. Torch-free.

    with open_predictions(Path("predictions/output_1.h5")) as source:
        review = gather(source, most=12)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from trainer.data.folders import Pair, pair
from trainer.data.images import open_image, prepared
from trainer.data.masks import Masks, read_masks
from trainer.errors import InputError, joined
from trainer.metrics import Counts, ImageScore, mean

UNSAID = Masks(threshold=127.5)
"""What masks mean where the file does not say."""


class Score(NamedTuple):
    """One image, predicted against its truth at the image's own size. Dice 1: nothing to find."""

    name: str
    dice: float
    lesion_pixels: int
    false_pixels: int

    @property
    def text(self) -> str:
        """For a title."""
        if self.lesion_pixels:
            return f"Dice {self.dice:.2f}"
        unit = "pixel" if self.false_pixels == 1 else "pixels"
        return f"no lesion: {self.false_pixels} false {unit}"


class Case(NamedTuple):
    """What is drawn of one image, all at the image's own size.

    `image` is (H, W, 3) uint8, `probability` (C, H, W) float32, `predicted` (H, W) uint8 with the
    class of each pixel, `truth` (H, W) likewise is None where there is none, and so is `score`.
    """

    name: str
    image: NDArray[np.uint8]
    probability: NDArray[np.float32]
    predicted: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    score: Score | None


class Review(NamedTuple):
    """The cases to draw, and the scores of all images (empty without truth); `total` images.

    `names` are those of the classes, the background first.
    """

    cases: list[Case]
    scores: list[Score]
    total: int
    threshold: float
    names: list[str]
    noun: str = "images"


class Source(NamedTuple):
    """An open predictions file, and the files of its images and masks by image name."""

    file: Any
    pairs: dict[str, Pair]
    masks: Masks
    threshold: float


@contextmanager
def open_predictions(
    path: Path, inputs: Path | None = None, targets: Path | None = None
) -> Iterator[Source]:
    """The predictions file at `path` with its images; the folders replace those that it names.

    Raises InputError for a file that is not one of predictions, and for images or masks that are
    not where they were.
    """
    if not path.is_file():
        raise InputError(
            str(path), "there is no such file", "a predictions file, output_<epoch>.h5"
        )
    try:
        file = h5py.File(path, "r")
    except OSError:
        found = "this is not a whole HDF5 file"
        raise InputError(str(path), found, "a predictions file that the trainer wrote") from None
    with file:
        names = image_names(file)
        if not names:
            accepted = "one dataset (C, H, W) for each image"
            raise InputError(str(path), "holds no predictions", accepted)
        if not file.attrs.get("whole_images", True):
            found = "its predictions are no masks that lie upon whole image files"
            accepted = "those of images (not of arrays or slices), without center_crop and rotate"
            raise InputError(str(path), found, accepted)
        folder = _folder(path, "inputs", inputs, str(file.attrs.get("inputs", "")))
        if folder is None:
            fix = "name the folder of the images with --inputs"
            raise InputError(str(path), "does not say where its images are", fix=fix)
        masks = _folder(path, "targets", targets, str(file.attrs.get("targets", "")))
        told = file.attrs.get("masks")
        meaning = Masks.model_validate_json(told) if told else UNSAID
        threshold = float(file.attrs.get("threshold", 0.5))
        yield Source(file, _pairs(path, names, folder, masks), meaning, threshold)


def image_names(file: Any) -> list[str]:
    """Names of the images of an open predictions file, those in groups too."""
    names: list[str] = []

    def look(name: str, item: Any) -> None:
        if getattr(item, "ndim", 0) == 3:
            names.append(name)

    file.visititems(look)
    return names


def _folder(path: Path, option: str, given: Path | None, named: str) -> Path | None:
    """The folder that an option gives, else the one named in the file; None for neither."""
    if given is None and not named:
        return None
    folder = given if given is not None else Path(named)
    if folder.is_dir():
        return folder
    where = f"--{option} {folder}" if given is not None else f"{path}, {option}"
    found = "there is no such folder" if given is not None else f"there is no folder {folder}"
    raise InputError(where, found, fix=f"say where it is with --{option} DIR")


def _pairs(path: Path, names: list[str], inputs: Path, targets: Path | None) -> dict[str, Pair]:
    """Image and mask of each name; faults of files that were not predicted do not matter here."""
    by_name = {item.name: item for item in pair(inputs, targets)[0]}
    faults = []
    for name in names:
        if name not in by_name:
            there = (inputs / name).exists()
            found = f"has no mask in {targets}" if there else f"is not in {inputs}"
            faults.append(InputError(name, found))
    if faults:
        fix = "name the folders that were predicted, with --inputs and --targets"
        error = joined(faults, str(path))
        raise InputError(error.where, error.found, fix=fix)
    return {name: by_name[name] for name in names}


def gather(source: Source, most: int) -> Review:
    """Scores all images and reads the first `most`: the worst first, in file order without truth.

    In an image without lesion any predicted pixel makes the Dice 0, so that it ranks as bad. Only
    the cases that are drawn stay in memory.
    """
    names = list(source.pairs)
    scores: list[Score] = []
    if any(files.masks for files in source.pairs.values()):
        scores = [score for name in names if (score := _case(source, name).score)]
        scores.sort(key=lambda score: (score.dice, -score.false_pixels))
        names = [score.name for score in scores]
    cases = [_case(source, name) for name in names[:most]]
    return Review(cases, scores, len(names), source.threshold, source.masks.names)


def _case(source: Source, name: str) -> Case:
    files = source.pairs[name]
    read = prepared(open_image(files.image, deep=True), 3, (), str(files.image))
    image = np.asarray(read.round(), np.uint8).transpose(1, 2, 0)
    height, width = image.shape[:2]
    probability = resized(np.asarray(source.file[name], np.float32), (width, height))
    predicted = classes(probability, source.threshold)
    if not files.masks:
        return Case(name, image, probability, predicted, None, None)
    truth = read_masks(files.masks, source.masks, (width, height))
    if source.masks.outputs == 1:
        truth = np.asarray(truth > 0, np.uint8)
    if source.masks.ignored is not None:  # nobody knows what is right there
        predicted = np.where(truth == source.masks.ignored, truth, predicted)
    score = scored(name, predicted, truth, len(source.masks.names))
    return Case(name, image, probability, predicted, truth, score)


def resized(probability: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """(C, H, W) resized bilinearly to `size` (width, height), as the trainer does for its scores.

    Pillow would smooth before it makes something smaller, and give other numbers than result.json.
    """
    for axis, length in ((1, size[1]), (2, size[0])):
        before = probability.shape[axis]
        at = np.clip((np.arange(length) + 0.5) * before / length - 0.5, 0, before - 1)
        low = at.astype(int)
        high = np.minimum(low + 1, before - 1)
        share = np.asarray(at - low, np.float32).reshape((-1, 1) if axis == 1 else (1, -1))
        first, second = probability.take(low, axis), probability.take(high, axis)
        probability = first + (second - first) * share
    return probability


def classes(probability: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """The class (H, W) of each pixel of (C, H, W): by threshold, or the likeliest of several."""
    if len(probability) == 1:
        return np.asarray(probability[0] > threshold, np.uint8)
    return np.asarray(probability.argmax(axis=0), np.uint8)


def scored(
    name: str, predicted: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int
) -> Score:
    """Classes (H, W) as predicted, against the truth."""
    own = []
    for number in range(classes):
        p, t = predicted == number, truth == number
        cells = ((p & t), (p & ~t), (~p & t), (~p & ~t))
        own.append(Counts(*(int(cell.sum()) for cell in cells)))
    score = ImageScore(name, tuple(own), tuple(own))
    lesion = sum(c.tp + c.fn for c in score.foreground)
    return Score(name, score.dice, lesion, score.false_pixels)


def summary(review: Review) -> str:
    """One line: which images are shown, and how all of them scored."""
    shown, total = len(review.cases), review.total
    noun = review.noun
    which = f"all {total} {noun}" if shown == total else f"{shown} of {total} {noun}"
    if not review.scores:
        return f"{which}, in file order; there is no truth"
    lesions = [score.dice for score in review.scores if score.lesion_pixels]
    empty = [score for score in review.scores if not score.lesion_pixels]
    parts = [f"{which}, worst first"]
    if lesions:
        parts.append(f"mean Dice of {len(lesions)} with lesion: {mean(lesions):.3f}")
    if empty:
        wrong = sum(score.false_pixels > 0 for score in empty)
        parts.append(f"false pixels in {wrong} of {len(empty)} without")
    return "; ".join(parts)
