"""A network that is a class in a Python file of the user.

The file is code. It runs where its owner asked for it: in a trial, or where `trust_code` says so.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from typing import Any

from torch import nn

from trainer.errors import InputError, nearest
from trainer.networks.description import Network

NAME = "rml_own_network"
"""What the file is called among the modules of this process."""


def build_own(network: Network, folder: Path, trust_code: bool) -> nn.Module:
    """The class, called with its arguments; raises InputError for whatever goes wrong in it.

    `folder` has the file. The class gets in_channels, classes and dimensions where it takes those
    names.
    """
    assert network.module
    name, _, class_name = network.module.rpartition(":")
    path = (folder / name).absolute()
    if not path.is_file():
        raise InputError(f"module {network.module}", f"there is no file '{path}'")
    if not trust_code:
        raise InputError(
            f"module {network.module}",
            f"the network is code, in {path}, and nobody has said that it may run here",
            fix="read the file; if you trust it: --trust-code (in Python trust_code=True)",
        )
    own = _load(path)
    known = [key for key, value in vars(own).items() if inspect.isclass(value)]
    if class_name not in known:
        hint = nearest(class_name, known)
        raise InputError(str(path), f"has no class '{class_name}'{hint}", ", ".join(known))
    build = getattr(own, class_name)
    try:
        made = build(**filled_in(build, network))
    except Exception as error:
        raise fault_of(error) or InputError(
            f"arguments of {network.module}", f"{type(error).__name__}: {error}"
        ) from None
    if not isinstance(made, nn.Module):
        raise InputError(str(path), f"{class_name} is not a torch.nn.Module", "a subclass of it")
    return made


def filled_in(build: Any, network: Network) -> dict[str, Any]:
    """What the class is called with: what it takes of these, and `arguments`."""
    known = {name: getattr(network, name) for name in ("in_channels", "classes", "dimensions")}
    takes = inspect.signature(build).parameters
    return {key: value for key, value in known.items() if key in takes} | network.arguments


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec and spec.loader
    own = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = own  # before it runs: dataclasses look their module up
    try:
        spec.loader.exec_module(own)
    except SyntaxError as error:
        raise InputError(f"{error.filename}, line {error.lineno}", f"{error.msg}") from None
    except Exception as error:
        raise fault_of(error) or InputError(str(path), f"{type(error).__name__}: {error}") from None
    return own


def fault_of(error: BaseException) -> InputError | None:
    """An exception that came out of the user's file, with its line; None for any other."""
    own = sys.modules.get(NAME)
    file = getattr(own, "__file__", None)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if not lines:
        return None
    text = str(error).strip()
    return InputError(f"{file}, line {lines[-1]}", f"{type(error).__name__}: {text}")
