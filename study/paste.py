"""Commands that are printed to be pasted: they work where the user stands."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from study.settings import PROGRAM_FOLDER


def shown(path: Path) -> str:
    """A path as one would type it: relative where it lies below or just beside."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("../../..") else relative)


def python() -> str:
    """The interpreter that runs this program."""
    found = shutil.which("python")
    if found and os.path.samefile(found, sys.executable):
        return "python"
    return shown(Path(sys.executable).absolute())


def trainer(module: str) -> str:
    """`python -m trainer…`, with its place where that is not here."""
    here = os.path.samefile(Path.cwd(), PROGRAM_FOLDER)
    place = "" if here else f"PYTHONPATH={shown(PROGRAM_FOLDER)} "
    return f"{place}{python()} -m {module}"


def driver() -> str:
    """`python rml_optimization.py`."""
    return f"{python()} {shown(PROGRAM_FOLDER / 'rml_optimization.py')}"
