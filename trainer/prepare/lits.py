"""LiTS (liver and lesions in CT) as TensorFlow's 3D U-Net reads it: cubes around the liver.

    made = prepare(Path("LITS"), Path("data/lits"), Choices())

Every volume becomes a cube of `resize` voxels a side (cubic spline; labels by the nearest voxel of
the same places), and of each cube `CROPS` crops are kept. The published converter has no Hounsfield
window, writes one file a crop and stops at the first number that is missing; here a window is an
option, and crops are cases of train.h5 and validation.h5, or of shards of these.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.volumes.grid import Grid
from trainer.data.volumes.preparation import Preparation
from trainer.data.volumes.scans import read_grid, suffix_of
from trainer.data.volumes.volume_file import Case, Header, VolumeWriter
from trainer.errors import InputError
from trainer.files import write_json
from trainer.prepare.fingerprint import Seen, fingerprint, read_case
from trainer.prepare.new_folder import check_empty, new_folder
from trainer.prepare.split_shares import PARTS, read_shares, split_by_patient
from trainer.prepare.volume_plan import plan
from trainer.prepare.volume_sources import Source, Sources
from trainer.prepare.volumes import check_cases, has_gpu, memory_bytes, notes_of, placed, told_all

LABELS: dict[str, tuple[int, ...]] = {"liver": (1,), "lesion": (2,)}
LIVER = 1
CROPS = 54
SPLIT = "0.764,0.236,0"
"""100 and 31 of the 131 volumes."""

BRIGHTNESS_CHANCE, BRIGHTNESS_STD, BRIGHTNESS_MOST = 0.9, 0.05, 0.1
IMAGE = re.compile(r"volume-(\d+)")
Progress = Callable[[str, int, int], None]


class Choices(NamedTuple):
    """What the command line says; see its help."""

    size: int = 128
    resize: int = 192
    around_liver: bool = True
    augment: bool = False
    window: tuple[float, float] | None = None
    split: str = SPLIT
    seed: int = 0
    shard_start: int = 0
    shard_stride: int = 1
    npy: bool = False
    one_hot: bool = False
    jobs: int = 0
    memory_gib: float = 0.0
    skip_bad: bool = False


class Made(NamedTuple):
    """Crops of each part that were written, and what a user should know."""

    crops: dict[str, int]
    notes: list[str]


def sources(folder: Path) -> Sources:
    """volume-N and segmentation-N in `folder`, as .nii, .nii.gz or .npy, in the order of N."""
    if not folder.is_dir():
        raise InputError(str(folder), "there is no such folder", "a folder with volume-0.nii …")
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        suffix = suffix_of(path)
        which, _, number = path.name.removesuffix(suffix).partition("-")
        known = suffix in (".nii", ".nii.gz", ".npy") and which in ("volume", "segmentation")
        if known and number.isdigit():
            found.setdefault(int(number), {})[which] = path
    cases, faults = [], []
    for own, files in sorted(found.items()):
        if missing := [one for one in ("volume", "segmentation") if one not in files]:
            where = f"{next(iter(files.values()))}"
            faults.append(InputError(where, f"has no {missing[0]}-{own} beside it"))
            continue
        name = f"volume-{own}"
        cases.append(Source(name, (files["volume"],), files["segmentation"], name))
    if not found:
        raise InputError(str(folder), "has no volumes", "volume-0.nii and segmentation-0.nii …")
    return Sources("lits", "LiTS", cases, LABELS, ["CT"], [], faults)


def liver_centre(label: NDArray[np.uint8]) -> tuple[int, ...]:
    """The middle of the box around the liver (lesions do not count), rounded down."""
    found = []
    for axis in range(3):
        others = tuple(one for one in range(3) if one != axis)
        at = np.flatnonzero((label == LIVER).any(axis=others))
        found.append(int(at[0] + at[-1]) // 2)
    return tuple(found)


def crop_starts(
    rng: np.random.Generator, label: NDArray[np.uint8], choices: Choices
) -> list[tuple[int, ...]]:
    """Where the crops of a cube begin: around the liver with jitter, or spread over the cube.

    The jitter is normal with sigma size // 6, at most size // 4, and crops stay in the cube.
    """
    size, whole = choices.size, choices.resize
    if choices.around_liver:
        centre = np.asarray(liver_centre(label))
        jitter = rng.normal(size=(CROPS, 3)) * (size // 6)
        moved = centre + np.clip(jitter, -(size // 4), size // 4).astype(int)
        middles = np.clip(moved, size // 2, whole - (size - size // 2))
        return [tuple(one) for one in (middles - size // 2).tolist()]
    ends = (0, (whole - size) // 2, whole - size)
    if not choices.augment:
        return [(ends[1],) * 3]
    return [tuple(one) for one in product(ends, repeat=3)] * (CROPS // len(ends) ** 3)


def brightness(rng: np.random.Generator) -> float:
    """The factor of a crop with `augment`: nine times in ten normal about 1, else 1."""
    if rng.random() >= BRIGHTNESS_CHANCE:
        return 1.0
    low, high = 1 - BRIGHTNESS_MOST, 1 + BRIGHTNESS_MOST
    return float(np.clip(rng.normal(1, BRIGHTNESS_STD), low, high))


def preparation_for(choices: Choices, orientation: str) -> Preparation:
    """What prediction does to a scan: the cube and the window, without the crops."""
    keys: dict[str, Any] = {}
    if choices.window:
        low, high = choices.window
        keys = {"clip": (low, high), "normalization": "constant"}
        keys |= {"mean": (low,), "std": (high - low,)}
    return Preparation(
        orientation=orientation, shape=(choices.resize,) * 3, corners=True, labels=LABELS, **keys
    )


def cube(
    source: Source, preparation: Preparation
) -> tuple[NDArray[np.float32], NDArray[np.uint8], Grid]:
    """A volume and its classes (resize a side each), and where the voxels lie; InputError."""
    from scipy import ndimage

    scan, values = read_case(source)
    assert values is not None and preparation.shape
    label = preparation.label(values, scan.grid, f"{source.name}, {source.label}")
    if not (label == LIVER).any():
        found = "has no voxel of the liver (1)"
        raise InputError(f"{source.name}, {source.label}", found, "a liver to crop around")
    turn = Preparation(orientation=preparation.orientation)
    own = turn.prepared_grid(scan.grid)
    image = turn.image(scan.array, scan.grid)[0]
    factors = [new / old for new, old in zip(preparation.shape, own.shape, strict=True)]
    # Published as it is: a spline of order 3, the centres of the outermost voxels in place.
    moved = ndimage.zoom(image, factors, order=3)
    values_only = preparation.model_copy(
        update={"orientation": None, "shape": None, "labels": {}, "corners": False}
    )
    there = preparation.prepared_grid(scan.grid)
    return values_only.image(moved[None], there)[0], label, there


def crops_of(
    source: Source, number: int, choices: Choices, preparation: Preparation
) -> Iterator[tuple[Case, NDArray[np.float32], NDArray[np.uint8]]]:
    """The crops of one volume as cases; they depend on the seed and on its number alone."""
    image, label, grid = cube(source, preparation)
    rng = np.random.default_rng([choices.seed, number])
    for index, start in enumerate(crop_starts(rng, label, choices)):
        region = tuple(slice(at, at + choices.size) for at in start)
        own = grid.cropped(start, (choices.size,) * 3)
        factor = brightness(rng) if choices.augment else 1.0
        name = f"{source.name}-{index:02d}"
        case = Case(name, own, own, source.patient, str(source.images[0].resolve()))
        yield case, image[region] * np.float32(factor), label[region]


def _check(choices: Choices) -> None:
    if not 0 < choices.size <= choices.resize <= 1024:
        found = f"--size {choices.size} of --resize {choices.resize}"
        raise InputError("--size", found, "a crop that fits into the cube, of at most 1024")
    if choices.window and choices.window[0] >= choices.window[1]:
        found = f"is {choices.window[0]:g},{choices.window[1]:g}"
        raise InputError("--window", found, "the lower value first, like -100,400")
    if choices.shard_stride < 1 or not 0 <= choices.shard_start < choices.shard_stride:
        found = f"is {choices.shard_start} of {choices.shard_stride}"
        raise InputError("--shard-start", found, "0 to --shard-stride less 1")
    if choices.one_hot and not choices.npy:
        raise InputError("--one-hot", "is of .npy files", fix="add --npy")
    read_shares(choices.split)


def prepare(
    source: Path,
    target: Path,
    choices: Choices,
    progress: Progress = lambda what, done, total: None,
) -> Made:
    """Writes the crops of all volumes, or of those whose number is start, start + stride ….

    Raises InputError with all faults of the volumes; with `skip_bad` those are left out and told.
    """
    _check(choices)
    sharded = choices.shard_stride > 1
    if not sharded:
        check_empty(target)
    found = sources(source)
    # Of all volumes, so that each shard has the same one.
    shares = read_shares(choices.split)
    parts = split_by_patient([one.patient for one in found.cases], shares, choices.seed)
    cases = [one._replace(part=part) for one, part in zip(found.cases, parts, strict=True)]
    own = [one for one in cases if _number(one) % choices.shard_stride == choices.shard_start]
    known = Preparation(labels=LABELS)
    seen, faults = check_cases(own, known, 1, choices.jobs or 1, progress)
    for one in [one for one in seen if not one.voxels[LIVER]]:
        where = f"{one.source.name}, {one.source.label}"
        faults.append(InputError(where, "has no voxel of the liver (1)"))
        seen.remove(one)
    faults = [*found.faults, *faults]
    if faults and (not choices.skip_bad or not seen):
        raise told_all(faults, found.name)
    if not seen:
        return Made({}, [])
    # That of the first volume of all, which another shard may have.
    orientation = read_grid(found.cases[0].images[0])[0].orientation
    preparation = preparation_for(choices, orientation)
    classes = preparation.classes
    header = Header(kind="lits", channels=["CT"], classes=classes, preparation=preparation)
    notes = [f"Left out: {fault.where}: {fault.found}" for fault in faults]
    notes += notes_of(seen, orientation, classes, {})
    if sharded:
        return Made(_write_shard(target, header, seen, choices, progress), notes)
    with new_folder(target) as folder:
        counts = {}
        for part in PARTS:
            if of_part := [one.source for one in seen if one.source.part == part]:
                npy, path = folder / part if choices.npy else None, folder / f"{part}.h5"
                counts[part] = _write(path, header, of_part, choices, npy, progress)
        facts = fingerprint("lits", found.name, ["CT"], classes, seen, orientation)
        fixed = preparation.model_dump(exclude={"shape", "spacing_mm"}, exclude_defaults=True)
        fixed = {"normalization": "none", "clip": None, "mean": (), "std": (), **fixed}
        memory = memory_bytes(choices.memory_gib)
        made = plan(facts, memory, None, (choices.size,) * 3, has_gpu(), **fixed)
        made.config["neural_network"]["data"]["patches"]["per_case"] = 1
        write_json(folder / "fingerprint.json", facts)
        write_json(folder / "layers.json", made.layers)
        write_json(folder / "config.json", placed(made.config, target.resolve(), counts))
    return Made(counts, notes)


def _number(source: Source) -> int:
    match = IMAGE.match(source.name)
    assert match
    return int(match[1])


def _write(
    path: Path,
    header: Header,
    cases: Sequence[Source],
    choices: Choices,
    npy: Path | None,
    progress: Progress,
) -> int:
    count = 0
    if npy:
        npy.mkdir(parents=True, exist_ok=True)
    with VolumeWriter(path, header) as out:
        for done, source in enumerate(cases, start=1):
            number = _number(source)
            for index, (case, image, label) in enumerate(
                crops_of(source, number, choices, header.preparation)
            ):
                out.add(case, image[None], label)
                if npy:
                    _write_npy(npy / f"instance-{number}-{index}", image, label, choices)
                count += 1
            progress(f"cropped for {path.stem}", done, len(cases))
    return count


def _write_npy(
    path: Path, image: NDArray[np.float32], label: NDArray[np.uint8], choices: Choices
) -> None:
    """PATH-im.npy (D, H, W) and PATH-label.npy, the class numbers or one channel a class, last."""
    np.save(path.with_name(f"{path.name}-im.npy"), image)
    if choices.one_hot:
        label = np.eye(len(LABELS) + 1, dtype=np.uint8)[label]
    np.save(path.with_name(f"{path.name}-label.npy"), label)


def _write_shard(
    target: Path, header: Header, seen: Sequence[Seen], choices: Choices, progress: Progress
) -> dict[str, int]:
    """target/train/train-00.h5 and so on, beside the shards of others."""
    counts = {}
    for part in PARTS:
        cases = [one.source for one in seen if one.source.part == part]
        path = target / part / f"{part}-{choices.shard_start:02d}.h5"
        if path.exists():
            raise InputError(str(path), "exists already", "a shard that is not there yet")
        if not cases:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            told = f"cannot be written ({os.strerror(error.errno or 0)})"
            raise InputError(str(target), told, "a folder that you may write to") from None
        npy = target / f"{part}-npy" if choices.npy else None
        counts[part] = _write(path, header, cases, choices, npy, progress)
    return counts
