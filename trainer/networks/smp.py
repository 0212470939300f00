"""Networks of segmentation_models_pytorch (MIT), built without touching the network."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from torch import nn

from trainer.errors import InputError, nearest
from trainer.networks.description import Network

_DECLARED: list[Any] = []  # a declaration ends with its Library object


def mend_torchvision() -> None:
    """Makes torchvision importable, which smp and MONAI import for its Python half alone.

    A torchvision that was built for CUDA beside a torch that was built for the CPU cannot load its
    compiled operators, and then fails on the first one that it describes. Declaring those operators
    lets the rest import.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        _DECLARED.append(library)
        importlib.import_module("torchvision")


def import_smp() -> Any:
    """The module segmentation_models_pytorch."""
    mend_torchvision()
    return importlib.import_module("segmentation_models_pytorch")


def build_smp(network: Network, weights: Path | None) -> nn.Module:
    """(N, in_channels, H, W) -> logits (N, classes, H, W).

    `weights` is a safetensors file of the encoder's weights for three channels, or None for random
    ones. Raises InputError for an encoder that is not known or does not fit the file.
    """
    smp = import_smp()
    assert network.encoder
    names = smp.encoders.get_encoder_names()
    if network.encoder not in names and not network.encoder.startswith("tu-"):
        hint = nearest(network.encoder, names)
        raise InputError("layers", f"unknown encoder '{network.encoder}'{hint}", "one of smp")
    name = network.network.removeprefix("smp.")
    models = [key for key, value in vars(smp).items() if _is_model(value)]
    if name not in models:
        hint = nearest(network.network, [f"smp.{model}" for model in models])
        raise InputError("layers", f"unknown network '{network.network}'{hint}", ", ".join(models))
    build = getattr(smp, name)
    takes = [key for key in inspect.signature(build).parameters if key != "kwargs"]
    unknown = [key for key in network.arguments if key not in takes]
    if unknown and not network.encoder.startswith("tu-"):  # timm's get what the others would drop
        found = f"{network.label} takes no '{unknown[0]}'{nearest(unknown[0], takes)}"
        raise InputError("layers, arguments", found, ", ".join(takes))
    channels = 3 if weights else network.in_channels
    try:
        module: Any = build(
            encoder_name=network.encoder,
            encoder_weights=None,
            in_channels=channels,
            classes=network.classes,
            activation=None,
            **network.arguments,
        )
    except Exception as error:  # smp, timm and torch each raise their own kinds
        raise InputError("layers", f"{network.label} cannot be built: {error}") from error
    if weights:
        _load_encoder(module, weights)
        if network.in_channels != channels:
            module.encoder.set_in_channels(network.in_channels, pretrained=True)
    return module


def _is_model(value: Any) -> bool:
    return (
        inspect.isclass(value)
        and issubclass(value, nn.Module)
        and "encoder_name" in inspect.signature(value).parameters
    )


def _load_encoder(module: Any, weights: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.encoder.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(str(weights), f"does not fit the encoder: {error}") from None
