"""The U-Net of this program (Ronneberger et al. 2015, with batch normalisation), in two dimensions
and in three (Çiçek et al. 2016), with the options of the network file.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from trainer.networks.description import Network

CONVOLUTION: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM: dict[int, Callable[..., nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM: dict[int, Callable[..., nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
POOL: dict[int, Callable[..., nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}

NONLINEARITY: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
}
INITIALIZATION: dict[str, Callable[[Tensor], Tensor]] = {
    "he_uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    "glorot_uniform": nn.init.xavier_uniform_,
    "truncated_normal": lambda w: nn.init.trunc_normal_(w, std=0.05, a=-0.1, b=0.1),
}
"""Of the kernels, as Keras defines them; biases then start from 0. torch and Keras count the inputs
of a transposed convolution alike."""


def _normalization(network: Network, channels: int) -> list[nn.Module]:
    match network.normalization:
        case "batch":
            momentum, eps = network.normalization_momentum, network.normalization_eps
            return [BATCH_NORM[network.dimensions](channels, eps=eps, momentum=momentum)]
        case "group":
            return [nn.GroupNorm(network.groups, channels, eps=network.normalization_eps)]
        case "instance":
            eps = network.normalization_eps
            return [INSTANCE_NORM[network.dimensions](channels, eps=eps, affine=True)]
    return []


def _double_convolution(
    network: Network,
    inputs: int,
    between: int,
    outputs: int,
    *,
    stride: int = 1,
    dropout: float = 0.0,
) -> nn.Sequential:
    convolution, bias = CONVOLUTION[network.dimensions], network.convolution_bias
    layers: list[nn.Module] = []
    for before, after, step in ((inputs, between, stride), (between, outputs, 1)):
        if layers and dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(convolution(before, after, 3, stride=step, padding=1, bias=bias))
        layers += _normalization(network, after)
        layers.append(NONLINEARITY[network.nonlinearity]())
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """(N, in_channels, H, W) or (N, in_channels, D, H, W) -> logits (N, classes, …).

    Sides are multiples of 2**depth. What is upsampled comes before the skipped channels in volumes,
    as in the published networks, and after them in images, as in the checkpoints of this program.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        dimensions, widths = network.dimensions, network.levels
        strided = network.downsampling == "stride"
        dropouts = network.dropout or [0.0] * len(widths)
        self.upsampled_first = dimensions == 3
        self.down = nn.ModuleList(
            _double_convolution(
                network,
                before,
                after // 2 if network.half_first else after,
                after,
                stride=2 if strided and level else 1,
                dropout=dropouts[level],
            )
            for level, (before, after) in enumerate(
                zip([network.in_channels, *widths], widths, strict=False)
            )
        )
        self.up = nn.ModuleList()
        for here, below in pairwise(widths):
            if network.upsampling == "nearest":
                self.up.append(nn.Upsample(scale_factor=2, mode="nearest"))
            else:
                outputs = here if network.upsampling == "transpose" else below
                self.up.append(TRANSPOSED[dimensions](below, outputs, 2, stride=2))
        self.merge = nn.ModuleList(
            _double_convolution(
                network, here + (here if network.upsampling == "transpose" else below), here, here
            )
            for here, below in pairwise(widths)
        )
        self.pool = nn.Identity() if strided else POOL[dimensions](2)
        self.head = CONVOLUTION[dimensions](widths[0], network.classes, 1)
        if network.initialization != "default":
            for module in self.modules():
                if isinstance(module, nn.modules.conv._ConvNd):
                    INITIALIZATION[network.initialization](module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for level in reversed(range(len(self.up))):
            both = [skips[level], self.up[level](x)]
            x = self.merge[level](torch.cat(both[::-1] if self.upsampled_first else both, dim=1))
        return self.head(x)
