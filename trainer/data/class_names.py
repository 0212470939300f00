"""Labels: the class of an image is the name of its folder. Torch-free.

    train/cat/1.png, train/dog/1.png, test/cat/2.png      classes cat (0) and dog (1)

The class is the folder directly below the folder of the part or, with a tag, directly below the
part of the path that is the tag. Its number is its rank among the sorted names of training and test
together, so that a class that one of them lacks shifts no number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.data.folders import Pair, list_images, name_in
from trainer.errors import InputError, joined, nearest


@dataclass(frozen=True)
class Labelled:
    """The samples of one part (`pairs`) with the name of the class of each (`classes`).

    `folders` are all folders of classes, those without a sample too.
    """

    pairs: list[Pair]
    classes: list[str]
    folders: list[str]


def class_of(path: Path, root: Path, tag: str | None) -> str:
    """The class of a file below `root`; raises InputError where it lies in no folder of a class."""
    if tag is None:
        parts = path.relative_to(root).parts
        if len(parts) < 2:
            fix = "move it into a folder with the name of its class"
            raise InputError(str(path), "lies in no folder of a class", f"{root}/CLASS/…", fix)
        return parts[0]
    folders = path.parts[:-1]
    places = [place for place, name in enumerate(folders[:-1]) if name == tag]
    if not places:
        found = f"no folder '{tag}' with a folder of a class below it"
        raise InputError(str(path), found + nearest(tag, folders), f"…/{tag}/CLASS/…")
    return folders[places[-1] + 1]


def _folders(root: Path, files: Iterable[Path], tag: str | None) -> list[str]:
    """Names of all folders of classes, the empty ones too."""
    tops = {root} if tag is None else set()
    for parent in {file.parent for file in files} if tag is not None else ():
        names = parent.parts
        place = max(at for at, name in enumerate(names[:-1]) if name == tag)
        tops.add(Path(*names[: place + 1]))
    found = {one.name for top in tops for one in top.iterdir() if one.is_dir()}
    return sorted(name for name in found if not name.startswith("."))


def labelled_files(root: Path, files: Sequence[Path], tag: str | None) -> Labelled:
    """Files below `root` with the classes of their folders; raises InputError with all faults."""
    classes: list[str] = []
    faults: list[InputError] = []
    for file in files:
        try:
            classes.append(class_of(file, root, tag))
        except InputError as fault:
            faults.append(fault)
    if faults:
        raise joined(faults, str(root))
    pairs = [Pair(file, (), name_in(root, file)) for file in files]
    return Labelled(pairs, classes, _folders(root, files, tag))


def labelled_images(folder: str, tag: str | None) -> Labelled:
    """The images of a folder and its subfolders; raises InputError with all faults."""
    root = Path(folder)
    images, faults = list_images(root, paired=False)
    if faults:
        raise joined(faults, folder)
    return labelled_files(root, images, tag)


def numbered(part: Labelled, names: Sequence[str], where: str) -> list[Pair]:
    """The samples of a part with the numbers of their classes among `names`.

    Raises InputError for a class that is not among them.
    """
    number = {name: place for place, name in enumerate(names)}
    unknown = sorted(set(part.classes) - set(names))
    if unknown:
        hints = ", ".join(f"'{name}'{nearest(name, names)}" for name in unknown[:5])
        found = f"has {len(unknown)} classes that the network was not trained for: {hints}"
        raise InputError(where, found, ", ".join(names[:20]))
    pairs = zip(part.pairs, part.classes, strict=True)
    return [replace(pair, label=number[name]) for pair, name in pairs]


def all_names(parts: dict[str, Labelled]) -> tuple[tuple[str, ...], list[str]]:
    """The sorted names of the classes of all parts, and what is to be told of them.

    A class that a part lacks is told: it may be a misspelt folder.
    """
    there = {part: set(one.classes) for part, one in parts.items()}
    names = tuple(sorted(set().union(*there.values(), *(one.folders for one in parts.values()))))
    notes = [f"Number of class labels: {len(names)}"]
    for part, own in there.items():
        for name in sorted(set(names) - own):
            others = [n for n in own if n not in set.intersection(*there.values())]
            notes.append(f"WARNING: no {part} image has the class '{name}'{nearest(name, others)}")
    return names, notes
