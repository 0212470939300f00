"""Drawing the split: once a study, balanced, and never through a group of images.

Near-identical images, and those that `--group-by` names, stay together; images with and without
lesions are drawn apart, so that each part has its share of both.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np

from study.data_kinds import AnyDataset
from study.dataset import Dataset, Images, twins
from study.settings import Settings
from study.slices import SliceDataset
from trainer.data.split import Parts, Split, read_split
from trainer.data.twins import grouped
from trainer.errors import InputError

SHARE = 0.15
"""Of the images, for validation; and for test where the data has no test part of its own."""


def groups_of(images: Images, group_by: str | None) -> list[list[int]]:
    """Indices of images that belong together, each index once; in order of their first."""
    keys = group_keys(images, group_by)
    if group_by is not None and not any(keys):
        accepted = f"names like {images.names[0]}"
        raise InputError("--group-by", f"'{group_by}' matches no image name", accepted)
    first_of: dict[str, int] = {}
    links = [(first_of.setdefault(k, i), i) for i, k in enumerate(keys) if k is not None]
    return grouped(len(images), [*twins(images, images), *links])


def group_keys(images: Images, group_by: str | None) -> list[str | None]:
    """The group of each image by its name; None for a name that does not match."""
    if group_by is None:
        return [None] * len(images)
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise InputError(
            "--group-by", f"'{group_by}' is not a regular expression ({error})"
        ) from None
    # A pattern that begins with ^ means the file's own name, also in a tree of folders.
    matches = [pattern.search(Path(n).name) or pattern.search(n) for n in images.names]
    return [m and (m.group(1) if pattern.groups else m.group(0)) for m in matches]


def _rarest(images: Images, group: list[int]) -> int | None:
    """The class that the fewest images have, of those in a group; None of images without any."""
    present = np.flatnonzero(images.has_class[group].any(axis=0))
    counts = images.has_class.sum(axis=0)
    return int(min(present, key=lambda number: counts[number])) if len(present) else None


def draw(
    images: Images, group_by: str | None, seed: int, shares: dict[str, float]
) -> dict[str, list[str]]:
    """Names of the images of each part: those in `shares`, and `training` with the rest."""
    order = random.Random(f"split {seed}")
    groups = groups_of(images, group_by)
    parts: dict[str, list[int]] = {name: [] for name in shares}
    classes = [_rarest(images, group) for group in groups]
    for one in (*range(images.has_class.shape[1]), None):
        empty = one is None
        stratum = [g for g, own in zip(groups, classes, strict=True) if own == one]
        total = sum(len(g) for g in stratum)
        order.shuffle(stratum)
        for name, share in shares.items():
            wanted = round(share * total)
            taken = 0
            for group in list(stratum):
                if taken + len(group) <= wanted or (
                    taken == 0 and not empty and len(group) < total / 2
                ):
                    parts[name] += group
                    taken += len(group)
                    stratum.remove(group)
                if taken >= wanted:
                    break
    held = {index for indices in parts.values() for index in indices}
    parts["training"] = [index for index in range(len(images)) if index not in held]
    for name, indices in parts.items():
        if not any(not images.empty[i] for i in indices):
            raise InputError(
                str(images.pairs[0].image.parent),
                f"the images cannot be split: no group with a lesion is left for {name}",
                "more images, or groups that are smaller",
                "loosen --group-by, or give a split of your own with --split FILE",
            )
    return {name: [images.names[i] for i in sorted(indices)] for name, indices in parts.items()}


def make_split(dataset: AnyDataset, settings: Settings) -> Split:
    """The split of a new study: drawn, or with the parts of the file that `--split` names; of
    prepared volumes the parts that they have."""
    near_twins: list[str] = []
    patients: dict[str, dict[str, list[str]]] = {}
    if isinstance(dataset, Dataset):
        parts = _parts_of_images(dataset, settings)
        near_twins = _near_twins(dataset, parts)
    elif isinstance(dataset, SliceDataset):
        if settings.split:
            parts = _given_parts(dataset, settings)
        else:
            parts = dataset.parts_for(settings.seed, settings.select_on)
        dataset.check_parts(parts)
        patients = dataset.patients_of(parts)
    else:
        parts = dataset.own_parts()
    return Split(
        seed=settings.seed,
        select_on="test" if settings.select_on == "test" else "validation",
        metric=settings.metric,
        group_by=settings.group_by,
        parts=parts,
        masks=dataset.masks,
        near_twins=near_twins,
        patients=patients,
    )


def _parts_of_images(dataset: Dataset, settings: Settings) -> Parts:
    if settings.split:
        return _given_parts(dataset, settings)
    shares = {"validation": SHARE} if settings.select_on == "validation" else {}
    shares |= {} if dataset.test else {"test": SHARE}
    drawn = draw(dataset.train, settings.group_by, settings.seed, shares) if shares else {}
    return Parts(
        training=drawn.get("training", dataset.train.names),
        validation=drawn.get("validation", []),
        test=dataset.test.names if dataset.test else drawn["test"],
    )


def crossings(dataset: Dataset, parts: Parts, group_by: str | None) -> dict[str, int]:
    """What the table tells of groups: `groups` of more than one image, `alone` images that
    `group_by` does not match, `shared` test images whose group is in training or validation too,
    and `leaks` validation images with a near-twin or a group in training (a given split)."""
    train, test = dataset.train, dataset.test or dataset.train
    keys = dict(zip(train.names, group_keys(train, group_by), strict=True))
    test_keys = dict(zip(test.names, group_keys(test, group_by), strict=True))
    learnt = {keys[n] for n in (*parts.training, *parts.validation)} - {None}
    groups = groups_of(train, group_by)
    training, validation = set(parts.training), set(parts.validation)
    leaks = 0
    for group in groups:
        names = {train.names[index] for index in group}
        leaks += len(names & validation) if names & training else 0
    return {
        "groups": sum(len(group) > 1 for group in groups),
        "alone": sum(key is None for key in keys.values()) if group_by else 0,
        "shared": sum(test_keys[name] in learnt for name in parts.test),
        "leaks": leaks,
    }


def _given_parts(dataset: Dataset | SliceDataset, settings: Settings) -> Parts:
    given, select_on, noun = str(settings.split), settings.select_on, settings.noun
    parts = read_split(given).parts
    test_names = set((dataset.test or dataset.train).names)
    for names, known in (
        (parts.training + parts.validation, set(dataset.train.names)),
        (parts.test, test_names),
    ):
        if missing := sorted(set(names) - known):
            raise InputError(
                given,
                f"names {len(missing)} {noun} that are not in {dataset.folder}: {missing[0]} …",
                f"a split of the same {noun}",
            )
    for a, b in (("training", "validation"), ("training", "test"), ("validation", "test")):
        if dataset.test and b == "test":
            continue  # another folder: the same names are other images
        if both := sorted(set(getattr(parts, a)) & set(getattr(parts, b))):
            raise InputError(given, f"{both[0]} stands in {a} and in {b}", "each image in one part")
    if not parts.training or not parts.test:
        raise InputError(given, "a part is empty", "images in training and in test")
    if select_on == "validation" and not parts.validation:
        raise InputError(given, "its part validation is empty", "images to choose on")
    if select_on == "test" and parts.validation:
        merged = [n for n in dataset.train.names if n in {*parts.training, *parts.validation}]
        return Parts(training=merged, validation=[], test=parts.test)
    return parts


def _near_twins(dataset: Dataset, parts: Parts) -> list[str]:
    """Test images with a near-identical training or validation image."""
    test = dataset.test or dataset.train
    tested, learnt = set(parts.test), {*parts.training, *parts.validation}
    names = {
        test.names[i]
        for i, j in twins(test, dataset.train)
        if test.names[i] in tested and dataset.train.names[j] in learnt
    }
    return sorted(names)
