"""What a network is asked for: how its output (N, C, …) is compared with a target. Torch-free.

foreground  C is 1; the target (N, 1, …) is in [0, 1], or any number for a regression
classes     C is the number of classes; the target (N, 1, …) is the class of each pixel or voxel
channels    the target (N, C, …) has a number for each output, as an image to be restored has
labels      the output is (N, C), the target (N,) the class of the whole sample
"""

from __future__ import annotations

from typing import Literal

Task = Literal["foreground", "classes", "channels", "labels"]
