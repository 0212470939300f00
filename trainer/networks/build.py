"""From a network file to a torch module.

    network = read_network("layers/unet_small.json")       # torch-free, description.py
    module = build(network)                                # SegmentationNetwork

Adding a network: one builder here, its keys in description.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.networks.description import Network
from trainer.networks.smp import build_smp
from trainer.networks.unet import UNet


class SegmentationNetwork(nn.Module):
    """Images in [0, 1] (N, C, H, W) -> logits (N, classes, H, W).

    The final activation stands apart (`probabilities`), so that losses can work on logits, which
    keeps them exact in mixed precision.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, network: Network) -> None:
        super().__init__()
        self.body, self.description = body, network
        mean, std = network.mean or [0.0], network.std or [1.0]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The final activation, in single precision."""
        if self.description.activation == "softmax":
            return logits.float().softmax(dim=1)
        return logits.float().sigmoid()


def build(network: Network, weights: Path | None = None) -> SegmentationNetwork:
    """The network of a checked description; `weights` as `find_weights` gives them."""
    if network.network == "unet":
        body: nn.Module = UNet(network.in_channels, network.classes, network.width, network.depth)
    else:
        body = build_smp(network, weights)
    module = SegmentationNetwork(body, network)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def parameter_counts(module: nn.Module) -> tuple[int, int]:
    """All parameters and the trainable ones."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trainable in sizes if trainable)
