"""ResUNet from its Keras file, against the same network by hand in torch, and Keras on torch.

    python benchmarks/networks.py --out benchmarks/networks_<hardware>_<date>.md

One training step: forward, binary cross-entropy on the logits, backward, SGD, in single precision.
All three have the same weights, whose outputs are compared first. They take turns; the ratio is
that of the medians. The network by hand and ours are in the memory format channels_last; Keras
takes (N, H, W, C), its own. Keras is a requirement of the tests (requirements-dev.txt).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_HOME", tempfile.mkdtemp(prefix="keras"))
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the trainer: see prepare_process
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.keras.graph import read_graph
from trainer.networks.keras.module import KerasNetwork
from trainer.networks.keras.weights_h5 import keras_array
from trainer.networks.keras.write import BOTTLENECK, DECODER_FILTERS, RESNET50, resunet

RESNET_EPSILON = 2e-5
MOMENTUM = 0.01
LEAST_HAND, LEAST_KERAS = 0.97, 1.4
"""What is claimed: times of the others by ours."""

Step = Callable[[], None]


def normal(channels: int, epsilon: float = RESNET_EPSILON) -> nn.Module:
    """As it is written in most networks: normalise, activate in place."""
    batch_norm = nn.BatchNorm2d(channels, epsilon, MOMENTUM)
    return nn.Sequential(batch_norm, nn.ReLU(inplace=True))


class Unit(nn.Module):
    """A residual unit: normalise, activate, convolve."""

    def __init__(self, inputs: int, filters: int, stride: int, first: bool) -> None:
        super().__init__()
        outputs = BOTTLENECK * filters
        self.start = normal(inputs)
        self.body = nn.Sequential(
            nn.Conv2d(inputs, filters, 1, bias=False),
            normal(filters),
            nn.Conv2d(filters, filters, 3, stride, 1, bias=False),
            normal(filters),
            nn.Conv2d(filters, outputs, 1, bias=False),
        )
        self.around = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if first else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        start = self.start(x)
        around = x if self.around is None else self.around(start)
        return self.body(start) + around, start


class ByHand(nn.Module):
    """ResUNet as one would write it in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.data = nn.BatchNorm2d(3, RESNET_EPSILON, MOMENTUM)
        self.first = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), normal(64))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.units, inputs = nn.ModuleList(), 64
        self.taken, widths = [], [64]
        for stage, (filters, units) in enumerate(RESNET50):
            for unit in range(units):
                if unit == 0 and stage > 0:
                    self.taken.append(len(self.units))
                    widths.append(inputs)
                stride = 2 if unit == 0 and stage > 0 else 1
                self.units.append(Unit(inputs, filters, stride, unit == 0))
                inputs = BOTTLENECK * filters
        self.last = normal(inputs)
        self.stages = nn.ModuleList()
        for filters in DECODER_FILTERS:
            inputs += widths.pop() if widths else 0
            layers: list[nn.Module] = []
            for channels in (inputs, filters):
                layers += [nn.Conv2d(channels, filters, 3, padding=1, bias=False)]
                layers += [normal(filters, 1e-3)]
            self.stages.append(nn.Sequential(*layers))
            inputs = filters
        self.end = nn.Conv2d(inputs, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.data(x))
        skips = [x]
        x = self.pool(x)
        for number, unit in enumerate(self.units):
            x, start = unit(x)
            if number in self.taken:
                skips.append(start)
        x = self.last(x)
        for stage in self.stages:
            x = F.interpolate(x, scale_factor=2)
            if skips:
                x = torch.cat([x, skips.pop()], dim=1)
            x = stage(x)
        out: Tensor = self.end(x)
        return out


def by_hand(ours: KerasNetwork) -> ByHand:
    """The network by hand with our weights: both list their layers in the same order."""
    module = ByHand()
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    sources = [m for m in ours.modules() if isinstance(m, kinds)]
    targets = [m for m in module.modules() if isinstance(m, kinds)]
    for source, target in zip(sources, targets, strict=True):
        target.load_state_dict(source.state_dict())
    return module


def in_keras(content: dict[str, Any], ours: KerasNetwork) -> Any:
    """The model of Keras with our weights; it ends in the logits, too."""
    import keras

    rewritten = json.loads(json.dumps(content))
    rewritten["config"]["layers"][-1]["config"]["activation"] = "linear"
    model = keras.Model.from_config(rewritten["config"])
    state = ours.state_dict()
    for node, name, parameter in read_graph(content, "resunet").named_parameters():
        arrays = {v.name: v for v in model.get_layer(node.name).weights}
        if parameter.keras in arrays:
            arrays[parameter.keras].assign(keras_array(parameter, state[name].numpy()))
    return model


def training_step(forward: Callable[[], Tensor], target: Tensor, parameters: Any) -> Step:
    """One step of training, as a function without arguments."""
    optimizer = torch.optim.SGD(parameters, 1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = F.binary_cross_entropy_with_logits(forward(), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def pairs(ours: Step, other: Step, count: int) -> list[tuple[float, float]]:
    """Times of both, one after the other, each first in every second pair."""
    for step in (ours, other, ours, other):
        step()
    found = []
    for number in range(count):
        if number % 2:
            second = seconds(other)
            found.append((seconds(ours), second))
        else:
            first = seconds(ours)
            found.append((first, seconds(other)))
    return found


def row(name: str, times: list[tuple[float, float]], least: float) -> str:
    ratios = [other / ours for ours, other in times]
    mine = statistics.median(ours for ours, _ in times)
    median = statistics.median(other for _, other in times)
    ratio = median / mine
    span = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"| {name} | {median:.3f} | {mine:.3f} | {ratio:.2f} | {span} | {least} |"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.machine()}"


def page(size: int, batch: int, count: int) -> str:
    """The measurements as a page."""
    torch.manual_seed(0)
    content = resunet(1, 3).content()
    ours = KerasNetwork(read_graph(content, "resunet"))
    x = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        ours.train()(x)  # statistics that are not 0 and 1
    hand, model = by_hand(ours), in_keras(content, ours)
    ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    hand.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    target = (torch.rand(batch, 1, size, size) > 0.5).float()
    last = x.movedim(1, -1).contiguous()
    with torch.no_grad():
        outputs = [m.eval()(x) for m in (ours, hand)]
        outputs.append(model(last, training=False).movedim(-1, 1))
    for module in (ours, hand):
        module.train()
    apart = [((o - outputs[0]).abs().max() / outputs[0].abs().max()).item() for o in outputs[1:]]
    if max(apart) > 1e-3:
        raise SystemExit(f"the networks are not the same: outputs differ by {apart}")
    ours_step = training_step(lambda: ours(x), target, ours.parameters())
    hand_step = training_step(lambda: hand(x), target, hand.parameters())
    trainable = [p for p in model.parameters() if p.requires_grad]
    keras_step = training_step(lambda: model(last, training=True).movedim(-1, 1), target, trainable)
    rows = [
        row("by hand in torch", pairs(ours_step, hand_step, count), LEAST_HAND),
        row("Keras on torch", pairs(ours_step, keras_step, count), LEAST_KERAS),
    ]
    import keras

    return "\n".join(
        [
            "# ResUNet from its Keras file, one training step",
            "",
            f"{date.today()}, {processor()}, {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}, Keras {keras.__version__}.",
            "",
            f"{batch} images of {size}x{size} pixels, 32,513,559 parameters, single precision, "
            "SGD, binary cross-entropy.",
            f"{count} pairs, each one after the other; seconds are medians, the ratio is theirs "
            "(above 1: ours is faster); from, to: the ratios within a pair. Outputs of the three "
            f"differ by {max(apart):.0e} of their largest value.",
            "",
            "| against | its seconds | ours | ratio | from, to | claimed |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--threads", type=int, help="default: one a core")
    parser.add_argument("--out", type=Path, help="also write the page there")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    text = page(options.size, options.batch, options.pairs)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
