"""What is in the data: every image and mask opened once, before anything is trained.

All faults are found together. The result knows sizes, what the masks mean, which images have no
lesion, and which are near-identical.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.settings import Settings
from trainer.data.folders import Layout, Pair, find_layout, pair
from trainer.data.images import mask_array, open_image
from trainer.data.labels import MaskClass, class_indices
from trainer.data.masks import FEW_VALUES, NEAR_EXTREME, PEAK, Masks, MaskValues
from trainer.data.twins import TWIN_SIDE, small_grey, standardised
from trainer.data.twins import twins as twin_rows
from trainer.errors import InputError, joined

AUGMENT_LIGHT: list[dict[str, float]] = [
    {"random_horizontal_flip": 0.5},
    {"random_rotate": 10},
    {"random_zoom": 0.1},
]
AUGMENT_LIGHT_INPUTS: list[dict[str, float]] = [
    {"random_brightness": 0.1},
    {"random_contrast": 0.2},
]

FEWEST_IMAGES = 10
CLASS_OF_ITS_OWN = 0.02
"""A value that covers more than this share of one mask is no fringe."""

PHOTOGRAPH = 0.2
"""A mask with more than this share between background and foreground is a picture."""


@dataclass(frozen=True)
class Scanned:
    """One image with its masks.

    `values` counts the pixels of its truth by value, or by class where classes are named (all 0
    without truth), `mask_values` the values and colours of its mask files. `view` is the 64x64
    image, `grey` says whether it has no colour, `brightness` is (mean, standard deviation) of the
    64x64 image in 0 to 255, `distinct` counts the grey values of the whole image. `contents` are
    checksums of the image's and the truth's pixels, however they are stored.
    """

    pair: Pair
    size: tuple[int, int]
    values: NDArray[np.int64]
    mask_values: MaskValues
    view: NDArray[np.float32]
    digest: str
    grey: bool
    brightness: tuple[float, float]
    distinct: int
    contents: tuple[str, str]


@dataclass(frozen=True)
class Scan:
    """All that could be read of a data folder, and every fault found."""

    layout: Layout
    train: list[Scanned]
    test: list[Scanned]
    faults: list[InputError]


@dataclass(frozen=True)
class Images:
    """The images of one folder; parallel arrays by image."""

    pairs: list[Pair]
    sizes: list[tuple[int, int]]
    foreground: NDArray[np.float64]
    """Share of each image that is foreground; 0 for an image without lesion, or without truth."""

    has_class: NDArray[np.bool_]
    """(images, classes but the background): which have it."""

    views: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def names(self) -> list[str]:
        """The images' names."""
        return [pair.name for pair in self.pairs]

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Which images have no lesion."""
        return np.equal(self.foreground, 0)


@dataclass(frozen=True)
class Dataset:
    """Images as the data of a study. `test` is None where the folder has one part only.

    `mask_shares` are the values of the masks, or the classes where they are named, with their
    share of the pixels.
    """

    folder: Path
    layout: Layout
    train: Images
    test: Images | None
    masks: Masks
    mask_shares: list[tuple[int, float]]
    grey: bool
    fingerprint: str

    splits = True
    """Whether trials read a split file."""

    @property
    def all_images(self) -> list[Images]:
        """Its parts."""
        return [self.train] + ([self.test] if self.test else [])

    @property
    def images_with_truth(self) -> list[Images]:
        """Its parts that have masks."""
        return self.all_images if self.test_has_truth else [self.train]

    @property
    def test_has_truth(self) -> bool:
        """Whether test images can be scored; else they are predicted only."""
        return self.test is None or self.layout.test_targets is not None

    @property
    def channels(self) -> int:
        """Channels of a network for these images: 1 where all are grey, else 3."""
        return 1 if self.grey else 3

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What trials read."""
        one = self.layout
        folders = (one.inputs, one.targets, one.test_inputs, one.test_targets)
        return tuple(folder.resolve() for folder in folders if folder)

    def trial_data(self, settings: Settings, split: Path | None, foreign: bool) -> dict[str, Any]:
        """Where a trial reads images, and how."""
        layout = self.layout
        data: dict[str, Any] = {
            "type": "images",
            "input_path": _folder_text(layout.inputs.resolve()),
            "target_path": _folder_text(layout.targets.resolve()),
        }
        if layout.test_inputs and layout.test_targets and settings.select_on == "test":
            data["test_input_path"] = _folder_text(layout.test_inputs.resolve())
            data["test_target_path"] = _folder_text(layout.test_targets.resolve())
        elif settings.select_on == "test":  # one folder only: its part `test`, the split names it
            data["test_input_path"] = data["input_path"]
            data["test_target_path"] = data["target_path"]
        light = settings.augment == "light" and not foreign
        size = {"resize": [settings.image_size, settings.image_size]}
        return data | {
            **({"split": str(split)} if split else {}),
            **_reading(settings),
            "transforms": [size, *(AUGMENT_LIGHT if light else [])],
            **({"input_transforms": AUGMENT_LIGHT_INPUTS} if light else {}),
        }

    def test_data(
        self,
        settings: Settings,
        near: Callable[[Path], str],
        split: str | None,
        output: str | None,
        sized: bool,
    ) -> dict[str, Any]:
        """Where the test images are, in a data set of one part all of it, of which the split names
        some; see `render_test`."""
        layout = self.layout
        inputs = layout.test_inputs or layout.inputs
        targets = layout.test_targets if layout.test_inputs else layout.targets
        return {
            "type": "images",
            "test_input_path": f"{near(inputs.resolve())}/",
            **({"test_target_path": f"{near(targets.resolve())}/"} if targets else {}),
            **({"test_output_path": output} if output else {}),
            **({"split": split} if split else {}),
            **_reading(settings),
            **(
                {"transforms": [{"resize": [settings.image_size, settings.image_size]}]}
                if sized
                else {}
            ),
        }


def _folder_text(path: Path) -> str:
    """A folder as configurations write it, with a slash at its end."""
    return f"{path}/"


def _reading(settings: Settings) -> dict[str, Any]:
    return {
        "test_batch_size": 2 * settings.batch_size,
        "preload": True,
        "target_grayscale": True,
        "target_is_mask": True,
    }


def _scan(pair: Pair, classes: list[MaskClass]) -> Scanned:
    image = open_image(pair.image)
    grey = image.convert("L")
    pixels = small_grey(grey)
    truth, found = _truth(pair, image.size, classes)
    digest = hashlib.sha256(pair.name.encode())
    for path in (pair.image, *pair.masks):
        digest.update(path.read_bytes())
    return Scanned(
        pair,
        image.size,
        np.bincount(truth.ravel(), minlength=256),
        found,
        standardised(pixels),
        digest.hexdigest(),
        _is_grey(image),
        (float(pixels.mean()), float(pixels.std())),
        sum(count > 0 for count in grey.histogram()),
        (_checksum(np.asarray(image.convert("RGB"))), _checksum(truth)),
    )


def _checksum(array: NDArray[np.uint8]) -> str:
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()


def _is_grey(image: Any) -> bool:
    if image.mode in ("1", "L", "LA"):
        return True
    rgb = np.asarray(image.convert("RGB"))
    return bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all())


def _truth(
    pair: Pair, size: tuple[int, int], classes: list[MaskClass]
) -> tuple[NDArray[np.uint8], MaskValues]:
    """The united masks (H, W) by value or class (empty without truth), and what the files hold."""
    united: NDArray[np.uint8] | None = None
    found = MaskValues()
    for path in pair.masks:
        mask = open_image(path)
        if mask.size != size:
            raise InputError(
                str(path),
                f"is {mask.size[0]}x{mask.size[1]} pixels, its image {size[0]}x{size[1]}",
                "a mask of its image's size",
            )
        array = mask_array(mask)
        coloured = mask.mode not in ("1", "L", "LA")
        found.add(array, np.asarray(mask.convert("RGB")) if coloured else None)
        if classes:
            array = class_indices(mask, classes, str(path))
        if united is None:
            united = array
        elif classes:
            united = np.where(array > 0, array, united)
        else:
            united = np.maximum(array, united)
    return np.zeros((0, 0), np.uint8) if united is None else united, found


def scan(folder: Path, classes: list[MaskClass], progress: Callable[[int, int], None]) -> Scan:
    """Opens everything in `folder`; `classes` are those of a labels file (none: two values).

    Raises InputError where the folder has no known layout; `progress(done, total)` is called after
    each image.
    """
    layout = find_layout(folder)
    train, faults = pair(layout.inputs, layout.targets)
    test: list[Pair] = []
    if layout.test_inputs:
        test, test_faults = pair(layout.test_inputs, layout.test_targets)
        faults += test_faults
    scanned: list[Scanned | None] = []

    def attempt(one: Pair) -> Scanned | InputError:
        try:
            return _scan(one, classes)
        except InputError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for found in pool.map(attempt, train + test):
            if isinstance(found, InputError):
                faults.append(found)
            scanned.append(None if isinstance(found, InputError) else found)
            progress(len(scanned), len(train) + len(test))
    read_train = [one for one in scanned[: len(train)] if one]
    return Scan(layout, read_train, [one for one in scanned[len(train) :] if one], faults)


def read_dataset(
    folder: Path, classes: list[MaskClass], progress: Callable[[int, int], None]
) -> Dataset:
    """Opens and checks everything in `folder`; raises InputError with all faults found."""
    found = scan(folder, classes, progress)
    layout, faults = found.layout, found.faults
    if len(found.train) < FEWEST_IMAGES and not faults:
        told = f"has {len(found.train)} images with masks"
        faults.append(InputError(str(layout.inputs), told, f"at least {FEWEST_IMAGES}"))
    if faults:
        raise joined(faults, f"the data in {folder}")
    everything = [*found.train, *found.test]
    values = MaskValues()
    for one in everything:
        values.histogram += one.values if classes else one.mask_values.histogram
        values.colours.update(one.mask_values.colours)
    if classes:
        masks = Masks(values=[v for v, _ in values.shares()][:8], classes=classes)
        _every_class_is_there(found.train, masks, str(layout.targets))
    else:
        masks = values.meaning(str(layout.targets))
        if faults := odd_masks(everything):
            raise joined(faults, f"the data in {folder}")
    train = images_of(found.train, masks)
    test = images_of(found.test, masks) if found.test else None
    if train.empty.all():
        raise InputError(
            str(layout.targets), "no training mask has a lesion", "some masks with foreground"
        )
    digest = hashlib.sha256("".join(one.digest for one in everything).encode()).hexdigest()
    grey = all(one.grey for one in everything)
    return Dataset(folder, layout, train, test, masks, values.shares(), grey, digest)


def odd_masks(images: Sequence[Scanned], fringes: bool = True) -> list[InputError]:
    """Masks that say background and foreground with other values than most do.

    The threshold of the set would read them wrongly: of 0 and 1 among 0 and 255, all is background.
    `fringes`: values between the two that cover little are edges (JPEG, resizing), and no fault.
    """
    with_truth = [one for one in images if one.pair.masks]
    held = [np.flatnonzero(one.mask_values.histogram).tolist() for one in with_truth]
    usual = Counter((v[0], v[-1]) for v in held if len(v) == 2).most_common(1)
    if not usual:
        return []
    low, high = usual[0][0]
    faults = []
    for one, values in zip(with_truth, held, strict=True):
        if kind := _oddity(one.mask_values.histogram, values, low, high, fringes):
            shown = ", ".join(map(str, values[:6])) + (" …" if len(values) > 6 else "")
            found = f"{kind}: it holds {shown}, most hold {low} and {high}"
            fix = "mend the mask, or leave the image out"
            faults.append(InputError(str(one.pair.masks[0]), found, "masks of one kind", fix))
    return faults


def _oddity(
    histogram: NDArray[np.int64], values: list[int], low: int, high: int, fringes: bool
) -> str:
    margin = NEAR_EXTREME * (high - low)
    shares = histogram / histogram.sum()
    between = [v for v in values if min(abs(v - low), abs(v - high)) > margin]
    nothing_bright = values[-1] <= (low + high) / 2
    if len(values) == 1:  # empty, or foreground everywhere: no fringe that could shift it
        odd = low < values[0] < high - margin or values[0] > high + margin
        return "is coded in another way" if odd else ""
    if len(values) == 2:
        odd = bool(between) or nothing_bright or values[0] > (low + high) / 2
        return "is coded in another way" if odd else ""
    if len(values) > FEW_VALUES:
        is_picture = shares[between].sum() > PHOTOGRAPH
        return "is no mask but a photograph, or the image itself" if is_picture else ""
    odd = any(shares[v] > (CLASS_OF_ITS_OWN if fringes else 0) for v in between)
    odd = odd or (nothing_bright and shares[low + 1 :].sum() > PEAK)
    return "has more than two values" if odd else ""


def _every_class_is_there(train: list[Scanned], masks: Masks, where: str) -> None:
    if missing := missing_classes(train, masks):
        found = f"no training mask has {', '.join(missing)}"
        fix = "take the class out of the labels file, or add images that have it"
        raise InputError(where, found, "every class in some mask", fix)


def missing_classes(train: Sequence[Scanned], masks: Masks) -> list[str]:
    """Named classes that no training image has."""
    counted = sum((one.values for one in train), np.zeros(256, np.int64))
    return [name for number, name in enumerate(masks.names) if counted[number] == 0]


def foreground_shares(images: list[Scanned], masks: Masks) -> NDArray[np.float64]:
    """Share of each image that is foreground; 0 without truth."""
    above = np.arange(256) > (masks.threshold if masks.threshold is not None else 0)
    return np.array([one.values[above].sum() / max(1, one.values.sum()) for one in images])


def images_of(images: list[Scanned], masks: Masks | None = None) -> Images:
    """The images as arrays; without the masks' meaning, none has foreground."""
    shares = foreground_shares(images, masks) if masks else np.zeros(len(images))
    views = [one.view for one in images] or [np.zeros(TWIN_SIDE**2, np.float32)]
    has_class = (shares > 0)[:, None]
    if masks and masks.outputs > 1:
        counts = [one.values[1 : masks.outputs] for one in images]
        has_class = np.stack(counts) > 0 if counts else np.zeros((0, masks.outputs - 1), bool)
    return Images(
        [one.pair for one in images],
        [one.size for one in images],
        shares,
        has_class,
        np.stack(views),
    )


def twins(left: Images, right: Images) -> list[tuple[int, int]]:
    """Pairs (i of left, j of right) of near-identical images."""
    return twin_rows(left.views, right.views)


def score_of_nothing(images: Images, chosen: list[str] | None = None) -> float:
    """Accuracy of predicting no foreground anywhere, every image counting the same."""
    names = set(images.names if chosen is None else chosen)
    wanted = np.array([name in names for name in images.names])
    foreground = float(images.foreground[wanted].sum())
    background = float((1 - images.foreground[wanted]).sum())
    dice_background = 2 * background / (2 * background + foreground)
    absent = int((~images.has_class[wanted].any(axis=0)).sum())  # these count 1, see metrics.py
    return float((dice_background + absent) / (1 + images.has_class.shape[1]))
