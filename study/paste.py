"""Commands that are printed to be pasted: they work where the user stands."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from launchers.image import CHECKOUT
from study.settings import PROGRAM_FOLDER

COMMAND = "rml-optimization"


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
    """`python -m trainer…`, with its place where Python would not find it (or another one)."""
    # The first entry is where this program lies; the trainer is started from here instead.
    found = PathFinder.find_spec("trainer", [str(Path.cwd()), *sys.path[1:]])
    ours = found and found.origin and Path(found.origin).resolve().parent.parent == PROGRAM_FOLDER
    place = "" if ours else f"PYTHONPATH={shown(PROGRAM_FOLDER)} "
    return f"{place}{python()} -m {module}"


def driver() -> str:
    """`python rml_optimization.py`, or its command where it is installed."""
    script = Path(sys.executable).with_name(COMMAND)
    if not CHECKOUT and script.exists():
        found = shutil.which(COMMAND)
        return COMMAND if found and os.path.samefile(found, script) else shown(script)
    return f"{python()} {shown(PROGRAM_FOLDER / 'rml_optimization.py')}"


def test_config() -> str:
    """The option that uses ./best_model, with consent where its network is a Python file."""
    consent = " --trust-code" if list(Path("best_model").glob("*.py")) else ""
    return f"--config=best_model/config_test.json{consent}"
