"""Which samples a run trains on and evaluates, from the folders and the split file: before any
tensor. How its network is used: usage.py."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config import Config, Data
from trainer.data.arrays import (
    Array,
    Block,
    Sample,
    blocks_of,
    labelled_arrays,
    list_arrays,
    paired,
)
from trainer.data.class_names import Labelled, all_names, labelled_images, numbered
from trainer.data.folders import Pair, pair
from trainer.data.idx import open_idx
from trainer.data.masks import Masks
from trainer.data.samples import Item
from trainer.data.slice_files import Slice, list_slices
from trainer.data.split import Split, chosen, read_split
from trainer.data.volumes.volume_file import Case, Header, is_volume_file, open_volumes
from trainer.errors import InputError, joined

DRAWN = -1
"""The `seed` of a configuration that is drawn from the operating system."""


@dataclass(frozen=True)
class Parts:
    """The samples of a run. `masks` is None where nothing says what masks mean.

    `class_names` are those of labels, by number; `notes` are lines for the log about what was
    found.
    """

    training: Sequence[Item]
    evaluation: Sequence[Item]
    evaluated_on: str
    masks: Masks | None
    seed: int
    metric: str
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    header: Header | None = None
    """Of prepared volumes."""

    def sizes(self) -> dict[str, Sequence[Item]]:
        """The parts that have samples, by name."""
        parts = {"training": self.training, self.evaluated_on: self.evaluation}
        return {name: items for name, items in parts.items() if items}

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        """The shape of one array of targets in its file; () for a number a sample; None where
        targets are no arrays or there are none."""
        for item in (*self.training[:1], *self.evaluation[:1]):
            if isinstance(item, Block) and item.whole.target is not None:
                return item.whole.target.shape if item.whole.row is None else ()
        return None


def _pairs(inputs: str, targets: str | None) -> list[Pair]:
    pairs, faults = pair(Path(inputs), Path(targets) if targets else None)
    if faults:
        raise joined(faults, inputs)
    return pairs


def _arrays(data: Data, inputs: str, targets: str | None) -> list[Sample]:
    found = list_arrays(inputs, data.kinds[0])
    if targets is None:
        return [Sample(one) for one in found]
    both = {one.name: one for one in found}
    if inputs == targets and set(both) == {"input", "target"}:  # two datasets of one file
        return [Sample(both["input"], both["target"])]
    return paired(found, list_arrays(targets, data.kinds[1]), f"{inputs} and {targets}")


def _read(data: Data, inputs: str, targets: str | None, notes: list[str]) -> Sequence[Item]:
    """The samples of one part whose targets are no labels."""
    if data.kinds[0] == "images":
        return _pairs(inputs, targets)
    if data.kinds[0] == "hdf5" and (data.patches or is_volume_file(inputs)):
        return _volumes(inputs)
    if data.slices:
        return list_slices(inputs, targets, data.slices)
    return blocks_of(_arrays(data, inputs, targets), data, notes.append)


def _volumes(path: str) -> list[Case]:
    """Prepared volumes, which hold their labels; all of them or none."""
    cases = open_volumes(path).cases
    if not cases:
        raise InputError(path, "holds no case", "one or more")
    told = [case for case in cases if case.has_label]
    if told and len(told) < len(cases):
        bare = next(case for case in cases if not case.has_label)
        raise InputError(bare.where, "has no label, others have", "labels for all, or for none")
    return cases


def _apart(training: Sequence[Item], evaluation: Sequence[Item]) -> None:
    """Raises InputError where a volume is trained on and evaluated, too."""
    trained = {(case.name, case.source) for case in training if isinstance(case, Case)}
    for case in evaluation:
        if isinstance(case, Case) and (case.name, case.source) in trained:
            found = f"{case.name} is trained on and evaluated"
            fix = "name files, like train.h5 and validation.h5, not their folder"
            raise InputError("data.input_path", found, "each case in one part", fix)


def _one_header(parts: dict[str, Sequence[Item]]) -> Header | None:
    """Of the volumes of all parts, which have to be prepared alike."""
    first: Case | None = None
    for items in parts.values():
        for case in items[:1]:
            if not isinstance(case, Case):
                continue
            if first and case.header != first.header:
                found = f"is prepared in another way than {first.path}"
                raise InputError(str(case.path), found, "files of one preparation")
            first = first or case
    return first.header if first else None


def _labelled(
    data: Data, known: Sequence[str], notes: list[str]
) -> tuple[dict[str, Sequence[Item]], tuple[str, ...]]:
    """The samples of both parts with labels, and the names of the classes; `known` are those that
    a checkpoint names."""
    kind = data.kinds[0]
    paths = {
        "training": (data.input_path, data.training_tag),
        "test": (data.test_input_path, data.test_tag or data.testing_tag),
    }
    arrays: dict[str, list[Array]] = {}
    parts: dict[str, Labelled] = {}
    for part, (path, tag) in paths.items():
        if path is None:
            continue
        if kind == "mnist":
            parts[part] = open_idx(Path(path), part, truth=part == "training")
        elif kind == "images":
            parts[part] = labelled_images(path, tag)
        else:
            arrays[part], parts[part] = labelled_arrays(path, kind, tag)
    told = {part: one for part, one in parts.items() if one.classes}
    names: tuple[str, ...] = tuple(known) if data.input_path is None else ()
    if told and not names:
        names, lines = all_names(told)
        notes += lines
    if data.input_path is not None and len(names) < 2:
        found = f"the training images have one class, '{names[0]}'"
        raise InputError(data.input_path, found, "a folder for each of two classes or more")
    items: dict[str, Sequence[Item]] = {}
    for part, one in parts.items():
        pairs = numbered(one, names, str(paths[part][0])) if one.classes else one.pairs
        items[part] = pairs
        if part in arrays:
            labels = zip(arrays[part], pairs, strict=True)
            samples = [Sample(array, label=pair.label) for array, pair in labels]
            items[part] = blocks_of(samples, data, notes.append)
    return items, names


def _chosen(items: Sequence[Item], names: list[str], where: str) -> Sequence[Item]:
    if not all(isinstance(item, Pair | Slice) for item in items):
        accepted = "leave it out for volumes and other arrays"
        raise InputError("data.split", "a split file is of images or slices", accepted)
    return chosen(items, names, where)


def open_parts(config: Config, class_names: Sequence[str] = ()) -> Parts:
    """Lists and pairs the files that a configuration names; raises InputError for what is amiss.

    With a split and training: its parts `training` and, unless test_input_path is given,
    `validation`. With a split and no training: its part `test`. `class_names` are those of the
    checkpoint, which number the labels of a run without training.
    """
    data = config.data
    split: Split | None = read_split(data.split) if data.split else None
    seed = config.seed if config.seed is not None else split.seed if split else 0
    if seed == DRAWN:
        seed = secrets.randbits(32)
    masks = split.masks if split else None
    metric = split.metric if split else "accuracy"
    notes: list[str] = []
    training: Sequence[Item] = []
    evaluation: Sequence[Item] = []
    names: tuple[str, ...] = ()
    if data.kinds[1] == "labels":
        labelled, names = _labelled(data, class_names, notes)
        training, evaluation = labelled.get("training", []), labelled.get("test", [])
    else:
        if data.input_path:
            training = _read(data, data.input_path, data.target_path, notes)
        if data.test_input_path:
            evaluation = _read(data, data.test_input_path, data.test_target_path, notes)
    evaluated_on = "test"
    if split and data.split:
        if not data.input_path:
            evaluation = _split_test(evaluation, split, data.split)
        elif data.test_input_path:
            training = _chosen(training, split.parts.training, data.split)
            evaluation = _split_test(evaluation, split, data.split)
        else:
            evaluation = _chosen(training, split.parts.validation, data.split)
            training = _chosen(training, split.parts.training, data.split)
            evaluated_on = "validation"
    header = _one_header({"training": training, "evaluation": evaluation})
    if header:
        _apart(training, evaluation)
    if header and Path(str(data.test_input_path)).stem.startswith("validation"):
        evaluated_on = "validation"  # as prepared volumes are named
    if header and config.trains and not all(c.has_label for c in training if isinstance(c, Case)):
        raise InputError(str(data.input_path), "its cases have no labels", "volumes with labels")
    if config.evaluation.metric or header:
        metric = config.evaluation.metric or "foreground_dice"
    return Parts(
        training, evaluation, evaluated_on, masks, seed, metric, names, tuple(notes), header
    )


def _split_test(items: Sequence[Item], split: Split, where: str) -> Sequence[Item]:
    return _chosen(items, split.parts.test, where) if split.parts.test else items
