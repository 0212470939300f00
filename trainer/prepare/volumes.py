"""Scans with labels, of any layout, into the files that training reads.

    prepare(msd(Path("Task04_Hippocampus")), Path("data/hippocampus"), Choices())

Each case is read twice, once to check it and once to write it, and at most `jobs` cases are in
memory at a time.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from trainer.data.volumes.preparation import BACKGROUND, Preparation
from trainer.data.volumes.scans import read_label
from trainer.data.volumes.volume_file import Case, Header, VolumeWriter
from trainer.errors import InputError, joined
from trainer.files import write_json
from trainer.prepare.fingerprint import Seen, fingerprint, look, read_case
from trainer.prepare.new_folder import check_empty, new_folder
from trainer.prepare.split_shares import PARTS, read_shares, split_by_patient
from trainer.prepare.volume_plan import Plan, plan
from trainer.prepare.volume_sources import Source, Sources

UNLABELLED = "unlabelled.h5"
GIB = 2**30
COPIES = 3
"""Of a prepared scan, in float32, that are in memory at once: moved, normalised, written."""
A = TypeVar("A")
B = TypeVar("B")
Progress = Callable[[str, int, int], None]


class Choices(NamedTuple):
    """What the command line says; see its help."""

    split: str = "0.7,0.15,0.15"
    seed: int = 0
    keep_order: bool = False
    spacing: str = "auto"
    reshape: str = ""
    crop: str = ""
    labels: tuple[str, ...] = ()
    jobs: int = 0
    memory_gib: float = 0.0
    with_test: bool = False
    skip_bad: bool = False


class Prepared(NamedTuple):
    """What was written: the cases of each part, and what a user should know."""

    parts: dict[str, int]
    notes: list[str]
    plan: Plan


def three(text: str, option: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """Three numbers above 0 from `1,1.5,2`."""
    accepted = "three numbers above 0, like 128,128,64, first axis first"
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(option, f"is '{text}'", accepted) from None
    if len(numbers) != 3 or not all(0 < number < 1e5 for number in numbers):
        raise InputError(option, f"is '{text}'", accepted)
    return numbers


def read_crop(text: str) -> tuple[tuple[int, int], ...]:
    """Voxels before and after along each axis, from `0:0,0:0,2:1`."""
    try:
        found = tuple(tuple(int(n) for n in part.split(":")) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 3 or any(len(ends) != 2 or min(ends) < 0 for ends in found):
        accepted = "voxels to take away before:after along each axis, like 0:0,0:0,2:1"
        raise InputError("--crop", f"is '{text}'", accepted)
    return tuple((ends[0], ends[1]) for ends in found)


def read_labels(
    groups: Sequence[str], known: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Classes by name from `whole tumour=1,2,3`, or from a name that the data set has.

    A value is a number or a name of the data set. Known values that are in no group are background,
    and so are those of a group `background`.
    Without groups: all that the data set names.
    """
    if not groups:
        return dict(known)
    option, found = "--labels", dict[str, tuple[int, ...]]()
    for group in groups:
        name, given, listed = (part.strip() for part in group.partition("="))
        values: list[int] = []
        for part in (listed if given else name).split(","):
            if part.strip() in known:
                values += known[part.strip()]
            elif given and part.strip().isdigit():
                values.append(int(part))
            else:
                accepted = f"NAME=VALUES, or one of {', '.join(known)}" if known else "NAME=VALUES"
                raise InputError(option, f"'{part.strip()}' is no label", accepted)
        if not name or name in found or (name == BACKGROUND and not given):
            raise InputError(option, f"has '{group}'", "a name of its own for each class")
        found[name] = tuple(dict.fromkeys(values))
    taken = {value for values in found.values() for value in values}
    rest = {value for values in known.values() for value in values} - taken
    if rest or BACKGROUND in found:
        rest |= {0, *found.pop(BACKGROUND, ())}
        found = {BACKGROUND: tuple(sorted(rest)), **found}
    if not set(found) - {BACKGROUND}:
        raise InputError(option, "names no class but the background", "NAME=VALUES")
    return found


def classes_for(labels: dict[str, tuple[int, ...]], option: str = "--labels") -> Preparation:
    """A preparation that knows the classes alone; InputError where they overlap."""
    try:
        return Preparation(labels=labels)
    except ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Value error, ")
        found, _, accepted = told.partition("; accepted: ")
        raise InputError(option, found, accepted) from None


def found_labels(cases: Sequence[Source], jobs: int) -> dict[str, tuple[int, ...]]:
    """A class a value, `label 1` and so on, for data sets that do not name their labels."""
    import numpy as np

    def values(case: Source) -> set[int]:
        assert case.label
        try:
            return set(np.unique(read_label(case.label)[0]).tolist())
        except InputError:
            return set()  # told when the cases are checked

    united = sorted(set().union(*in_turn(values, cases, jobs)) - {0})
    if not united:
        raise InputError("labels", "are empty in all cases", "a label above 0")
    if len(united) > 255 or united[0] < 0:
        found = f"have {len(united)} values, {united[0]} to {united[-1]}"
        raise InputError("labels", found, "1 to 255 classes, from 0 on")
    return {f"label {value}": (value,) for value in united}


def in_turn(work: Callable[[A], B], items: Sequence[A], jobs: int) -> Iterator[B]:
    """work(item) of each item, in their order, at most `jobs` of them at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting: list[Future[B]] = []
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == jobs:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()


def has_gpu() -> bool:
    """Whether a training here would have one."""
    import torch

    return torch.cuda.is_available()


def memory_bytes(given_gib: float) -> float:
    """Of the first GPU, else of the machine or its container, where none is given."""
    import torch

    if given_gib:
        return given_gib * GIB
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit: "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return float(total)


def check_cases(
    cases: Sequence[Source], classes: Preparation, channels: int | None, jobs: int, done: Progress
) -> tuple[list[Seen], list[InputError]]:
    """All cases that are sound, and a fault for each that is not."""

    def one(case: Source) -> Seen | InputError:
        try:
            return look(case, classes, channels)
        except InputError as error:
            return error

    seen: list[Seen] = []
    faults: list[InputError] = []
    same: dict[str, str] = {}
    for number, result in enumerate(in_turn(one, cases, jobs), start=1):
        done("checked", number, len(cases))
        if isinstance(result, InputError):
            faults.append(result)
            continue
        name = result.source.name
        if (other := same.setdefault(result.digest, name)) != name:
            where = f"{name}, {result.source.images[0]}"
            faults.append(InputError(where, f"is the same scan as {other}", "each scan once"))
            continue
        count = len(seen[0].sampled) if seen else len(result.sampled)
        if len(result.sampled) != count:
            found = f"has {len(result.sampled)} channels, {seen[0].source.name} {count}"
            faults.append(InputError(f"{name}, {result.source.images[0]}", found, "the same"))
            continue
        seen.append(result)
    return seen, faults


def told_all(faults: Sequence[InputError], name: str) -> InputError:
    """One error that names each bad case, however many there are."""
    fix = "correct them, or go on without them: --skip-bad"
    if len(faults) == 1:
        return InputError(faults[0].where, faults[0].found, faults[0].accepted, fix)
    lines = [f"- {fault.where}: {fault.found}" for fault in faults]
    told = "\n".join([f"{len(faults)} cases have a fault", *lines])
    return InputError(f"the cases of {name}", told, fix=fix)


def split_parts(seen: Sequence[Seen], choices: Choices) -> list[Seen]:
    """The cases with their part: that of the data set, and for the others drawn by patient."""
    parts = [one.source.part for one in seen]
    if free := [one.source.patient for one in seen if not one.source.part]:
        seed = None if choices.keep_order else choices.seed
        drawn = iter(split_by_patient(free, read_shares(choices.split), seed))
        parts = [part or next(drawn) for part in parts]
    held: dict[str, tuple[str, str]] = {}
    faults = []
    for one, part in zip(seen, parts, strict=True):
        name = one.source.name
        first, own = held.setdefault(one.source.patient, (name, part))
        if own != part:
            found = f"its patient {one.source.patient} is in two parts: {first} in {own}, {name} "
            faults.append(InputError(name, f"{found}in {part}", "each patient in one part"))
    if faults:
        raise joined(faults, "the split")
    if "train" not in parts:
        raise InputError("the split", "has no case to train on", "a case in train")
    return [
        one._replace(source=one.source._replace(part=part))
        for one, part in zip(seen, parts, strict=True)
    ]


def notes_of(
    seen: Sequence[Seen],
    orientation: str,
    classes: Sequence[str],
    labels: dict[str, tuple[int, ...]],
) -> list[str]:
    """What is not wrong, but should be known."""
    turned = Counter(one.grid.orientation for one in seen if one.grid.orientation != orientation)
    told = []
    if turned:
        counts = ", ".join(f"{count} {axes}" for axes, count in turned.items())
        first = seen[0].source.name
        told.append(
            f"Orientations are mixed: {counts} are brought to {orientation}, that of {first}."
        )
        names = [one.source.name for one in seen if one.grid.orientation != orientation]
        told.append(f"  {_listed(names)}")
    empty = [one.source.name for one in seen if one.source.label and not sum(one.voxels[1:])]
    if empty:
        told.append(f"Without any foreground: {_listed(empty)}.")
    if alike := _one_patient(seen):
        told.append(
            f"Names look like one patient in two parts: {_listed(alike)}. If they are, say what of "
            "a name is the patient, like --patient '^[^_]+'."
        )
    voxels = [sum(one.voxels[number] for one in seen) for number in range(len(classes))]
    if unseen := [name for name, count in zip(classes, voxels, strict=True) if not count]:
        told.append(f"No case has a voxel of: {', '.join(unseen)}.")
    there = {value for one in seen for value in one.values}
    for name, values in labels.items():
        if name not in unseen and (missing := set(values) - there):
            listed = ", ".join(map(str, sorted(missing)))
            told.append(f"No case has a voxel of {listed}, of the values of {name}.")
    return told


def _one_patient(seen: Sequence[Seen]) -> list[str]:
    """Cases of different parts whose names differ in their last piece alone, where not all do."""
    groups: dict[str, list[Seen]] = {}
    for one in seen:
        groups.setdefault(one.source.name.rpartition("_")[0], []).append(one)
    if len(groups) == 1:  # numbered cases, like hippocampus_001
        return []
    apart = (
        group
        for stem, group in groups.items()
        if stem
        and len({one.source.part for one in group}) > 1
        and all(one.source.patient == one.source.name for one in group)
    )
    return [one.source.name for group in apart for one in group]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def prepare(
    sources: Sources,
    target: Path,
    choices: Choices,
    progress: Progress = lambda what, done, total: None,
    recipe: dict[str, Any] | None = None,
    also: Callable[[Path, Sequence[Source]], None] = lambda folder, cases: None,
) -> Prepared:
    """Writes train.h5, validation.h5, test.h5, fingerprint.json, config.json and layers.json.

    `recipe` has keys of the preparation that are not derived from the cases; `also` writes more
    into the folder, of the cases that are sound. Raises InputError for a target that is not empty,
    and with all faults of the cases; with `skip_bad` those are left out and told.
    """
    check_empty(target)
    for case in sources.cases:
        if case.name in ("", ".", "..") or "/" in case.name:
            found = f"gives a case the name '{case.name}'"
            raise InputError(str(case.images[0]), found, "a name", "rename the file")
        if not case.name.isprintable():
            found = f"gives a case the name {case.name!a}"
            raise InputError(str(case.images[0]), found, "a name of text", "rename the file")
    jobs = choices.jobs or min(4, os.cpu_count() or 1)
    shape = three(choices.reshape, "--reshape", int) if choices.reshape else None
    spacing: Any = choices.spacing
    if spacing not in ("auto", "none"):
        spacing = three(spacing, "--spacing", float)
    if shape and choices.spacing not in ("auto", "none"):
        raise InputError("--reshape", "stands beside --spacing", "one of them")
    crop = {"crop": read_crop(choices.crop)} if choices.crop else {}
    shares = read_shares(choices.split)
    if choices.with_test:
        tested = [case._replace(part="test") for case in sources.unlabelled if case.label]
        rest = [case for case in sources.unlabelled if not case.label]
        sources = sources._replace(cases=[*sources.cases, *tested], unlabelled=rest)
    if not sources.cases and not sources.faults:
        fix = "python -m trainer takes scans without labels as they are, to predict"
        raise InputError(sources.name, "has no labelled cases", "scans with labels", fix)
    free = [case.patient for case in sources.cases if not case.part]
    if free and not sources.faults:  # told before all cases are read
        split_by_patient(free, shares, choices.seed)
    known = sources.labels or (found_labels(sources.cases, jobs) if not choices.labels else {})
    labels = read_labels(choices.labels, known)
    classes = classes_for(labels)
    channels = len(sources.channels) or None
    seen, faults = check_cases(sources.cases, classes, channels, jobs, progress)
    faults = [*sources.faults, *faults]
    if faults and (not choices.skip_bad or not seen):
        raise told_all(faults, sources.name)
    if not any(sum(one.voxels[1:]) for one in seen if one.source.label):
        found = "no case has a voxel of any class"
        raise InputError(sources.name, found, "labels with foreground", "check --labels")
    seen = split_parts(seen, choices)
    orientation = seen[0].grid.orientation
    notes = [f"Left out: {fault.where}: {fault.found}" for fault in faults]
    notes += notes_of(seen, orientation, classes.classes, labels)
    count = len(seen[0].sampled)
    names = sources.channels or [f"channel {n}" for n in range(count)]
    known_spacing = not any(path.suffix == ".npy" for one in seen for path in one.source.images)
    for name, values in labels.items():
        parts = [one for one, own in labels.items() if set(own) < set(values)]
        if parts and name != BACKGROUND:
            told = f"Classes exclude each other: {name} is what is in no {' or '.join(parts)}."
            notes.append(told)
    facts = fingerprint(
        sources.kind, sources.name, names, classes.classes, seen, orientation, known_spacing
    )
    planned = plan(
        facts,
        memory_bytes(choices.memory_gib),
        None if spacing == "none" else spacing,
        shape,
        has_gpu(),
        orientation=orientation,
        labels=labels,
        **crop,
        **(recipe or {}),
    )
    header = Header(
        kind=sources.kind,
        channels=names,
        classes=classes.classes,
        preparation=planned.preparation,
    )
    memory = memory_bytes(0)
    for one in seen:  # before anything is written
        grid = planned.preparation.prepared_grid(one.grid)
        needed = COPIES * 4 * count * math.prod(grid.shape)
        if needed > memory:
            told = " x ".join(map(str, grid.shape))
            found = f"would have {told} voxels, which take {needed / GIB:.0f} GiB"
            accepted = f"what fits into {memory / GIB:.0f} GiB"
            raise InputError(one.source.name, found, accepted, "another --spacing or --reshape")
    written: dict[str, int] = {}
    with new_folder(target) as folder:
        total = len(seen) + (len(sources.unlabelled) if choices.with_test else 0)
        for part in PARTS:
            own = [one.source for one in seen if one.source.part == part]
            if own:
                _write(folder / f"{part}.h5", header, own, jobs, progress, written, total)
                written[part] = len(own)
        if choices.with_test and sources.unlabelled:
            path = folder / UNLABELLED
            _write(path, header, sources.unlabelled, jobs, progress, written, total)
            written["unlabelled"] = len(sources.unlabelled)
        also(folder, [one.source for one in seen])
        write_json(folder / "fingerprint.json", facts)
        write_json(folder / "layers.json", planned.layers)
        write_json(folder / "config.json", placed(planned.config, target.resolve(), written))
    return Prepared(written, notes, planned)


def placed(config: dict[str, Any], folder: Path, written: dict[str, int]) -> dict[str, Any]:
    """The configuration with the whole paths of its files, so that it runs from anywhere."""
    network = dict(config["neural_network"])
    data = dict(network["data"])
    network["layers"] = str(folder / network["layers"])
    for key in ("input_path", "test_input_path"):
        data[key] = str(folder / data[key])
    if "validation" not in written:
        del data["test_input_path"]
    return {**config, "neural_network": {**network, "data": data}}


def prepared_case(source: Source, header: Header) -> tuple[Case, Any, Any, Any]:
    """A case, its image (C, D, H, W), its label and the label on its own voxels (or None each)."""
    preparation = header.preparation
    scan, values = read_case(source)
    grid = preparation.prepared_grid(scan.grid)
    image = preparation.image(scan.array, scan.grid)
    label = original = None
    if values is not None:
        own = preparation.classes_of(values, f"the label {source.label}")
        label = preparation.moved_classes(own, scan.grid)
        original = None if grid.same_as(scan.grid) else own
    case = Case(source.name, grid, scan.grid, source.patient, str(source.images[0].resolve()))
    return case, image, label, original


def _write(
    path: Path,
    header: Header,
    cases: Sequence[Source],
    jobs: int,
    progress: Progress,
    written: dict[str, int],
    total: int,
) -> None:
    before = sum(written.values())
    with VolumeWriter(path, header) as out:
        made = in_turn(lambda source: prepared_case(source, header), cases, jobs)
        for number, (case, image, label, original) in enumerate(made, start=1):
            out.add(case, image, label, original)
            progress("written", before + number, total)
