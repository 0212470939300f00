"""What is in the data: every image and mask opened once, before anything is trained.

All faults are found together. The result knows sizes, what the masks mean, which images have no
lesion, and which are near-identical.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.folders import Layout, Pair, find_layout, pair
from trainer.data.images import mask_array, open_image
from trainer.data.masks import MaskMeaning, MaskValues
from trainer.errors import InputError, joined

FEWEST_IMAGES = 10
TWIN_SIDE = 64
TWIN_CORRELATION = 0.95
"""Grey images of 64x64 pixels that correlate above this are taken for the same scene."""

BLOCK = 2048


@dataclass(frozen=True)
class Scanned:
    """One image with its mask. `values` counts the mask's values, `view` is the 64x64 image."""

    pair: Pair
    size: tuple[int, int]
    values: NDArray[np.int64]
    view: NDArray[np.float32]
    digest: str
    mask_values: MaskValues


@dataclass(frozen=True)
class Images:
    """The images of one folder; parallel arrays by image."""

    pairs: list[Pair]
    sizes: list[tuple[int, int]]
    foreground: NDArray[np.float64]
    """Share of each image that is foreground; 0 for an image without lesion."""

    views: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def names(self) -> list[str]:
        """The file names."""
        return [pair.name for pair in self.pairs]

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Which images have no lesion."""
        return np.equal(self.foreground, 0)


@dataclass(frozen=True)
class Dataset:
    """The data of a study. `test` is None where the folder has one part only."""

    folder: Path
    layout: Layout
    train: Images
    test: Images | None
    masks: MaskMeaning
    mask_shares: list[tuple[int, float]]
    fingerprint: str

    @property
    def all_images(self) -> list[Images]:
        """Its parts."""
        return [self.train] + ([self.test] if self.test else [])


def _scan(pair: Pair) -> Scanned:
    image = open_image(pair.image)
    small = image.convert("L").resize((TWIN_SIDE, TWIN_SIDE), Image.Resampling.BILINEAR)
    assert pair.mask
    mask = open_image(pair.mask)
    if mask.size != image.size:
        raise InputError(
            str(pair.mask),
            f"is {mask.size[0]}x{mask.size[1]} pixels, its image {image.size[0]}x{image.size[1]}",
            "a mask of its image's size",
        )
    array = mask_array(mask)
    values = MaskValues()
    values.add(array, None if mask.mode in ("1", "L", "LA") else np.asarray(mask.convert("RGB")))
    digest = hashlib.sha256(pair.name.encode())
    for path in (pair.image, pair.mask):
        digest.update(path.read_bytes())
    view = _standardised(np.asarray(small, np.float32).ravel())
    return Scanned(pair, image.size, values.histogram, view, digest.hexdigest(), values)


def _standardised(view: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = view - view.mean()
    length = float(np.linalg.norm(centred))
    return np.asarray(centred / length if length > 0 else centred, np.float32)


def _scan_all(
    pairs: list[Pair], progress: Callable[[int], None]
) -> tuple[list[Scanned], list[InputError]]:
    scanned: list[Scanned] = []
    faults: list[InputError] = []

    def attempt(pair: Pair) -> Scanned | InputError:
        try:
            return _scan(pair)
        except InputError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, found in enumerate(pool.map(attempt, pairs), start=1):
            if isinstance(found, InputError):
                faults.append(found)
            else:
                scanned.append(found)
            progress(done)
    return scanned, faults


def read_dataset(folder: Path, progress: Callable[[int, int], None]) -> Dataset:
    """Opens and checks everything in `folder`; raises InputError with all faults found.

    `progress(done, total)` is called after each image.
    """
    layout = find_layout(folder)
    train_pairs, faults = pair(layout.inputs, layout.targets)
    test_pairs: list[Pair] = []
    if layout.test_inputs:
        test_pairs, test_faults = pair(layout.test_inputs, layout.test_targets)
        faults += test_faults
    pairs = train_pairs + test_pairs
    scanned, scan_faults = _scan_all(pairs, lambda done: progress(done, len(pairs)))
    faults += scan_faults
    if len(train_pairs) < FEWEST_IMAGES and not faults:
        found = f"has {len(train_pairs)} images with masks"
        faults.append(InputError(str(layout.inputs), found, f"at least {FEWEST_IMAGES}"))
    if faults:
        raise joined(faults, f"the data in {folder}")
    values = MaskValues()
    for one in scanned:
        values.histogram += one.mask_values.histogram
        values.colours.update(one.mask_values.colours)
    meaning = values.meaning(str(layout.targets))
    train = _images(scanned[: len(train_pairs)], meaning.threshold)
    test = _images(scanned[len(train_pairs) :], meaning.threshold) if test_pairs else None
    if train.empty.all():
        raise InputError(
            str(layout.targets), "no training mask has a lesion", "some masks with foreground"
        )
    digest = hashlib.sha256("".join(one.digest for one in scanned).encode()).hexdigest()
    shares = values.shares()
    return Dataset(folder, layout, train, test, meaning, shares, digest)


def _images(scanned: list[Scanned], threshold: float) -> Images:
    above = np.arange(256) > threshold
    return Images(
        [one.pair for one in scanned],
        [one.size for one in scanned],
        np.array([one.values[above].sum() / one.values.sum() for one in scanned]),
        np.stack([one.view for one in scanned]),
    )


def twins(left: Images, right: Images) -> list[tuple[int, int]]:
    """Pairs (i of left, j of right) of near-identical images, in blocks that fit in memory."""
    found: list[tuple[int, int]] = []
    for start in range(0, len(left), BLOCK):
        for other in range(0, len(right), BLOCK):
            products = left.views[start : start + BLOCK] @ right.views[other : other + BLOCK].T
            rows, columns = np.nonzero(products > TWIN_CORRELATION)
            found += zip((rows + start).tolist(), (columns + other).tolist(), strict=True)
    return found


def score_of_nothing(images: Images, chosen: list[str] | None = None) -> float:
    """Accuracy of predicting no foreground anywhere, every image counting the same."""
    wanted = None if chosen is None else set(chosen)
    shares = [
        s
        for n, s in zip(images.names, images.foreground, strict=True)
        if wanted is None or n in wanted
    ]
    foreground, background = float(np.sum(shares)), float(np.sum(1 - np.array(shares)))
    dice_background = 2 * background / (2 * background + foreground)
    return (dice_background + (1.0 if foreground == 0 else 0.0)) / 2
