"""A network of one's own: two convolutions at full size, one at half size, brought together."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """(N, in_channels, H, W) -> logits (N, classes, H, W): no sigmoid or softmax at the end."""

    def __init__(self, in_channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.coarse = nn.Sequential(
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
        )
        self.head = nn.Conv2d(3 * width, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        return self.head(torch.cat([fine, self.coarse(fine)], dim=1))
