"""From a network file to a torch module.

    network = read_network("layers/unet_small.json")       # torch-free, description.py
    module = build(network)                                # SegmentationNetwork
    module.check((128, 96))                                # width, height: it can take them

Adding a network: one builder here, its keys in description.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.errors import InputError
from trainer.networks.convolution import Conv3d
from trainer.networks.description import Network, array_order, check_size, shown_size
from trainer.networks.keras.module import KerasNetwork
from trainer.networks.monai import build_monai
from trainer.networks.normalization import NORMALIZATIONS
from trainer.networks.own import build_own, fault_of
from trainer.networks.smp import build_smp
from trainer.networks.unet import UNet

CPU_LAYERS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv3d: Conv3d, **NORMALIZATIONS}
"""Layers of torch's that are slow or not exact in channels last on a CPU, and what stands for them:
same names, same values."""


class SegmentationNetwork(nn.Module):
    """Images in [0, 1] (N, C, H, W) -> logits (N, classes, H, W); volumes (N, C, D, H, W) alike.

    A Keras network may take other dimensions and return another shape: (N, classes) of a
    classifier, (N, rows, classes) of what is no image.

    The final activation stands apart (`output`, `probabilities`), so that losses can work on
    logits, which keeps them exact in mixed precision.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, network: Network) -> None:
        super().__init__()
        self.body, self.description = body, network
        self.normalized = network.mean is not None or network.std is not None
        self.axis = 1  # of the classes in the output
        if network.keras is not None and network.graph.literal_output:
            self.axis = -1
        mean, std = network.mean or [0.0], network.std or [1.0]
        across = (1, -1, *(1,) * network.dimensions)
        self.register_buffer("mean", torch.tensor(mean).view(across), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(across), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of a network that returns several outputs, the first. Raises InputError for another
        shape than the loss needs."""
        logits = self.body((x - self.mean) / self.std if self.normalized else x)
        if self.description.keras is not None:
            return logits
        if isinstance(logits, list | tuple) and logits:
            logits = logits[0]
        expected = (x.shape[0], self.description.classes, *x.shape[2:])
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != expected:
            told = f"its output is {found} for an input {tuple(x.shape)}"
            raise InputError(f"network {self.description.label}", told, f"the shape {expected}")
        return logits

    def check(self, size: Sequence[int]) -> None:
        """Raises InputError where the network cannot take one image of `size`, which has the
        order of array_order."""
        if self.description.keras is None:
            check_size(self.description, size, f"network {self.description.label}")
        training, parameter = self.training, self.mean
        x = torch.zeros(
            1, self.description.in_channels, *array_order(size), device=parameter.device
        )
        try:
            with torch.no_grad():  # not inference_mode: what a network keeps is trained with
                self.eval()(x)
        except (InputError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if fault := fault_of(error):
                raise fault from None
            lines = str(error).strip().splitlines() or [type(error).__name__]
            told = f"cannot take {shown_size(size)}: {lines[0]}"
            fix = 'another image size, or other "arguments"'
            raise InputError(f"network {self.description.label}", told, fix=fix) from None
        finally:
            self.train(training)

    def output(self, logits: Tensor) -> Tensor:
        """What the network itself gives, in single precision: its final activation applied.

        Log-probabilities for log_softmax, the logits for none.
        """
        logits = logits.float()
        match self.description.activation:
            case "sigmoid":
                return logits.sigmoid()
            case "softmax":
                return logits.softmax(dim=self.axis)
            case "log_softmax":
                return logits.log_softmax(dim=self.axis)
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """In single precision: sigmoid for one class and for networks that end in one, softmax for
        all others."""
        if self.description.activation == "sigmoid" or self.description.classes == 1:
            return logits.float().sigmoid()
        return logits.float().softmax(dim=self.axis)


def build(
    network: Network,
    weights: Path | None = None,
    *,
    folder: Path | None = None,
    trust_code: bool = False,
) -> SegmentationNetwork:
    """The network of a checked description; `weights` as `find_weights` gives them.

    `folder` has the Python file of a network of the user's own (where its network file or its
    checkpoint lies), which runs only with `trust_code`; else InputError.
    """
    if network.kind == "unet":
        body: nn.Module = UNet(network)
    elif network.kind == "smp":
        body = build_smp(network, weights)
    elif network.kind == "monai":
        body = build_monai(network)
    elif network.kind == "keras":
        body = KerasNetwork(network.graph)
    else:
        body = build_own(network, folder or Path(), trust_code)
    module = SegmentationNetwork(body, network)
    # In channels last, convolutions of 16 to 32 channels over crops of 48x64x48 voxels take 0.6 of
    # the time on a CPU, those of images less than half.
    ranks = {tensor.dim() for tensor in (*body.parameters(), *body.buffers())}
    if 5 in ranks and 4 not in ranks:
        body.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        replace_layers(body, CPU_LAYERS)
    elif 4 in ranks and 5 not in ranks:
        body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        replace_layers(body, CPU_LAYERS)
    return module


def replace_layers(network: nn.Module, layers: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Makes the layers of a network those that the table has for them; nothing is copied."""
    for module in network.modules():
        if type(module) in layers:
            module.__class__ = layers[type(module)]


def parameter_counts(module: nn.Module) -> tuple[int, int]:
    """All parameters and the trainable ones."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trainable in sizes if trainable)
