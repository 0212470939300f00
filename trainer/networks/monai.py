"""Networks of MONAI (Apache-2.0), in two and three dimensions."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

from trainer.errors import InputError, nearest
from trainer.networks.description import FETCHES, Network
from trainer.networks.smp import mend_torchvision

IN_CHANNELS = ("in_channels", "in_chns", "num_channels", "n_input_channels")
CLASSES = ("out_channels", "out_chns", "num_classes", "n_classes")
DIMENSIONS = ("spatial_dims", "dimensions")
"""How MONAI's classes spell what a network file knows."""


def build_monai(network: Network) -> nn.Module:
    """(N, in_channels, …) -> logits (N, classes, …), which `SegmentationNetwork` checks.

    Raises InputError for a name that is not there and for arguments that the class does not take.
    """
    mend_torchvision()
    nets = importlib.import_module("monai.networks.nets")
    name = network.network.removeprefix("monai.")
    classes = {key for key, value in vars(nets).items() if _is_network(value)}
    if name not in classes:
        hint = nearest(name, classes)
        raise InputError("layers", f"MONAI has no network '{name}'{hint}", "one of networks.nets")
    build = getattr(nets, name)
    arguments = _filled_in(build, network)
    arguments |= _fetching_nothing(build, network)
    takes = inspect.signature(build).parameters.values()
    plain = [p for p in takes if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p.name for p in plain if p.default is p.empty and p.name not in arguments]
    if missing:
        found = f"{network.network} needs {', '.join(missing)}"
        raise InputError("layers, arguments", found, fix='name them in "arguments"')
    if unknown := [key for key in arguments if key not in {p.name for p in plain}]:
        hint = nearest(unknown[0], [p.name for p in plain])
        found = f"{network.network} takes no '{unknown[0]}'{hint}"
        raise InputError("layers, arguments", found, ", ".join(p.name for p in plain))
    try:
        made: nn.Module = build(**arguments)
    except Exception as error:  # the library's own checks raise many kinds
        told = f"{network.network} cannot be built: {type(error).__name__}: {error}"
        raise InputError("layers", told) from None
    return made


def _is_network(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _fetching_nothing(build: Any, network: Network) -> dict[str, Any]:
    """What keeps a class from fetching weights that it fetches unasked."""
    found = {}
    for parameter in inspect.signature(build).parameters.values():
        if not FETCHES.search(parameter.name) or parameter.default is parameter.empty:
            continue
        if parameter.default is True:
            found[parameter.name] = False
        elif parameter.default:
            told = f"{network.network} fetches its weights ({parameter.name})"
            raise InputError("layers", told, "a network that starts from random weights")
    return found


def _filled_in(build: Any, network: Network) -> dict[str, Any]:
    takes = inspect.signature(build).parameters
    filled: dict[str, Any] = {}
    for names, value in (
        (IN_CHANNELS, network.in_channels),
        (CLASSES, network.classes),
        (DIMENSIONS, network.dimensions),
    ):
        filled |= {name: value for name in names if name in takes}
    return filled | network.arguments
