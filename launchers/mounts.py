"""Which host paths a container needs so that its inputs can be read, wherever links lead.

A container sees each path at its own place, read-only. A link is only a name: what it names must be
there too, hop by hop, so each path on the way is mounted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from trainer.errors import InputError

MAX_HOPS = 40
"""As many links in a row as Linux follows."""

KEPT = frozenset(
    map(
        Path,
        (
            *("/", "/bin", "/dev", "/dev/shm", "/etc", "/lib", "/lib64", "/opt", "/opt/rml"),
            *("/opt/venv", "/proc", "/run", "/sbin", "/sys", "/tmp", "/usr", "/usr/bin"),
            *("/usr/lib", "/usr/local", "/usr/local/bin", "/usr/local/lib", "/var"),
        ),
    )
)
"""Folders of the container that a mount must not hide (what lies in them may be mounted)."""


MOST_FILES = 64
"""So many linked files of one folder are mounted one by one; for more it is the folder."""


def private_folders() -> frozenset[Path]:
    """KEPT, the caller's home folder, and what that lies in."""
    home = Path(os.path.expanduser("~"))
    return KEPT.union(*((path, *path.parents) for path in (home, home.resolve())))


def mounts(inputs: Iterable[Path], run_folder: Path) -> list[Path]:
    """The paths to mount read-only for `inputs`, sorted; none of them inside another.

    For a link in an input folder to a file elsewhere it is that file; where more than MOST_FILES of
    one folder are linked, it is that folder, unless that would show the caller's home folder or
    hide a folder of the container. Links to such folders, and to nothing, are left out. So is what
    lies in the run folder, which is mounted by itself to be written. Raises InputError for an input
    that is not there or that would hide a folder of the container.
    """
    found = _Found(private_folders())
    for path in inputs:
        path = Path(os.path.normpath(path))
        if not path.exists():
            raise InputError(str(path), "is not there, or links to nothing")
        if path in KEPT or (path.resolve() in KEPT and path.is_dir()):
            fix = "move the data into a folder of their own, or use --launcher process"
            raise InputError(str(path), "would hide a folder of the container", fix=fix)
        found.add(path)
    places = found.places()
    own = (run_folder, run_folder.resolve())
    outside = {place for place in places if not any(_covers(folder, place) for folder in own)}
    return [
        place for place in sorted(outside) if not any(parent in outside for parent in place.parents)
    ]


def hops(path: Path) -> list[Path]:
    """`path`, and what it becomes as its links are followed one at a time; the last has no link.

    Raises OSError (ELOOP) where links go round in a circle.
    """
    found = [path]
    while (after := _follow_one(found[-1])) is not None:
        if len(found) > MAX_HOPS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        found.append(after)
    return found


def _follow_one(path: Path) -> Path | None:
    """`path` with the first of its folders that is a link, or itself, replaced by what it names."""
    here = Path(path.anchor)
    for index, part in enumerate(path.parts[1:], start=1):
        here /= part
        if here.is_symlink():
            named = os.path.join(here.parent, os.readlink(here), *path.parts[index + 1 :])
            return Path(os.path.normpath(named))
    return None


class _Found:
    """What has to be mounted, as it is found. None of `spared` is mounted for a link's sake."""

    def __init__(self, spared: frozenset[Path]) -> None:
        self._spared = spared
        self._places: set[Path] = set()
        self._walked: set[Path] = set()
        self._linked: dict[Path, set[str]] = {}

    def add(self, path: Path) -> None:
        """`path`, its hops, and what the links in it lead to."""
        on_the_way = hops(path)
        self._places.update(on_the_way)
        real = on_the_way[-1]
        if real not in self._walked and real.is_dir():
            self._walked.add(real)
            for link in _links_in(real):
                self._add_target(link)

    def _add_target(self, link: Path) -> None:
        """What `link` names, hop by hop: files, or a folder."""
        if not link.exists():
            return
        while link.is_symlink():
            target = Path(os.path.normpath(link.parent / os.readlink(link)))
            if target.is_dir():
                if self._spared.isdisjoint(hops(target)):
                    self.add(target)
                return
            self._linked.setdefault(target.parent, set()).add(target.name)
            link = target

    def places(self) -> set[Path]:
        """All of it; of a folder with many linked files, the folder."""
        found = set(self._places)
        for folder, names in self._linked.items():
            on_the_way = hops(folder)
            if len(names) > MOST_FILES and self._spared.isdisjoint(on_the_way):
                found.update(on_the_way)
            else:
                found.update(place / name for place in on_the_way for name in names)
        return found


def _links_in(folder: Path) -> list[Path]:
    """All links in a folder and its subfolders, without following them.

    Entries know what they are without a system call each, which counts with 100,000 images.
    """
    links, todo = [], [str(folder)]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        links.append(Path(entry.path))
                    elif entry.is_dir():
                        todo.append(entry.path)
        except PermissionError:  # Whoever needs it will say so.
            continue
    return links


def _covers(folder: Path, path: Path) -> bool:
    return folder == path or folder in path.parents
