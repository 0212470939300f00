"""What a run writes for people and parsers: the settings in its log, and the two text logs.

`<stem>_train<ext>` has a line a batch (seconds, epoch, batch, loss, gradient norm), and
`<stem>_test<ext>` a line an evaluated epoch, which ends in `Accuracy: 0.904`.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch

from trainer.config import LOSS_FIELDS, OPTIMIZER_FIELDS, SCHEDULE_FIELDS, Config
from trainer.console import Console
from trainer.device import device_label
from trainer.networks.build import SegmentationNetwork, parameter_counts
from trainer.parts import Parts
from trainer.usage import Usage


class TextLogs:
    """The text logs of `outfile`; a rerun begins them anew, a resume (`more`) appends."""

    def __init__(self, outfile: str | None, more: bool = False) -> None:
        self._began = time.monotonic()
        self._train = self._test = None
        if outfile:
            mode = "a" if more else "w"
            path = Path(outfile)
            path.parent.mkdir(parents=True, exist_ok=True)
            stem = path.with_suffix("")
            self._train = Path(f"{stem}_train{path.suffix}").open(mode, buffering=1)  # noqa: SIM115
            self._test = Path(f"{stem}_test{path.suffix}").open(mode, buffering=1)  # noqa: SIM115

    def train(self, epoch: int, batch: int, loss: float, gradient_norm: float) -> None:
        """A batch of training."""
        if self._train:
            seconds = time.monotonic() - self._began
            self._train.write(f"{seconds:.3f} {epoch} {batch} {loss:.6f} {gradient_norm:.6f}\n")

    def test(self, epoch: int, loss: float | None, accuracy: float) -> None:
        """An evaluated epoch. The epoch is the first number of its line, the accuracy the last."""
        if self._test:
            told = "" if loss is None else f" Loss: {loss:.4f},"
            self._test.write(f"Epoch {epoch},{told} Accuracy: {accuracy:.3f}\n")


class Clock:
    """How an epoch's time goes: waiting for batches, and computing on them."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._data = self._compute = 0.0

    def data(self) -> None:
        """A batch is there."""
        self._data += self._since()

    def compute(self) -> None:
        """A step is done (on a GPU: is asked for)."""
        self._compute += self._since()

    def _since(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return self._last - before

    def __str__(self) -> str:
        whole = max(self._data + self._compute, 1e-9)
        return f"Data: {self._data / whole:.0%}; Compute: {self._compute / whole:.0%}"


OPTIMIZER_NAMES = {
    "sgd": "SGD",
    "rmsprop": "RMSProp",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamw": "AdamW",
    "lars": "LARS",
    "lamb": "LAMB",
    "hessian": "Hessian (L-BFGS, strong Wolfe)",
}
LOSS_NAMES = {
    "bce": "BCE (Binary Cross-Entropy)",
    "dice": "Dice score",
    "nll": "NLL (Negative Log-Likelihood)",
    "mse": "MSE (Mean Squared Error)",
    "jaccard": "Jaccard score",
    "focal": "Focal",
    "lovasz": "Lovasz",
    "dice_ce": "Dice and cross-entropy",
    "adaptive_dice32": "Adaptive Dice",
    "log_dice": "Logarithm of Dice",
    "tversky": "Tversky",
    "generalized_dice": "Generalized Dice",
}
SCHEDULE_NAMES = {
    "exponential": "Exponential",
    "step": "Step",
    "multistep": "MultiStep",
    "warmup": "Warmup",
    "linearwarmup": "LinearWarmup",
    "exponentialdecay": "ExponentialDecay",
    "polynomial": "Polynomial",
    "cosine": "Cosine",
}
AS_PUBLISHED = {"amsgrad": "AMSGrad", "learning_rate": "Learning rate"}
PRINTED_LINES = 100


def printed_batches(batches: int) -> set[int]:
    """The batches of an epoch that the log tells: every one, or a hundred spread evenly."""
    return {math.ceil(k * batches / PRINTED_LINES) for k in range(1, PRINTED_LINES + 1)}


def _words(name: str) -> str:
    return AS_PUBLISHED.get(name, name.replace("_", " ").capitalize())


def _written(value: object) -> object:
    """Switches as 0 and 1."""
    return int(value) if isinstance(value, bool) else value


def print_network(
    label: str, module: SegmentationNetwork, device: torch.device, console: Console
) -> None:
    """Who runs, on what, and the network."""
    console.line("rml-optimization : dnn")
    console.line("RocketML : 1 MPI process")  # the line that scripts around rmldnn look for
    console.section("Device(s)", {device_label(device): ""})
    every, trainable = parameter_counts(module)
    items: dict[str, object] = {"Model name": label}
    items |= {"Total parameters": every, "Trainable parameters": trainable}
    if module.description.operations is not None:
        items["Num of operations"] = module.description.operations
    console.section("Neural Network", items)


def print_settings(config: Config, console: Console) -> None:
    """Optimizer, learning rate schedules and loss."""
    optimizer, loss = config.optimizer, config.loss
    if config.trains and optimizer:
        names = OPTIMIZER_FIELDS[optimizer.type]
        fields = {_words(name): _written(getattr(optimizer, name)) for name in names}
        console.section("Optimizer", {"Type": OPTIMIZER_NAMES[optimizer.type], **fields})
        for schedule in optimizer.schedules:
            told = {
                _words(name): getattr(schedule, name) for name in SCHEDULE_FIELDS[schedule.type]
            }
            kind = {"Type": SCHEDULE_NAMES[schedule.type]}
            console.section(
                "Learning rate scheduler", {**kind, **told, "Verbose": schedule.verbose}
            )
    if loss:
        told = {
            _words(name): value
            for name in LOSS_FIELDS[loss.function]
            if (value := getattr(loss, name)) is not None or name != "source"
        }
        console.section("Loss", {"Function": LOSS_NAMES[loss.function], **told})


def print_data(config: Config, usage: Usage, parts: Parts, console: Console) -> None:
    """The samples of each part, how they are batched and what is done to them."""
    data = usage.data
    console.section("Dataset")
    for name, items in parts.sizes().items():
        training = items is parts.training
        size = data.batch_size if training else data.test_batch_size
        crops = data.patches.per_case if training and data.patches else 1
        samples = len(items) * crops
        told: dict[str, object] = {
            "Type": " -> ".join(dict.fromkeys(data.kinds)),
            "Num samples (total)": samples,
            "Num samples (per process)": samples,
            "Batch size (requested)": size,
            "Batch size (per process)": size,
            "Num batches (per process)": math.ceil(samples / size),
        }
        console.items(f"{name.capitalize()} dataset", told)
    transforms = {
        f"{side}{one.name}": one.told
        for side, ones in (
            ("", data.transforms),
            ("inputs: ", data.input_transforms),
            ("targets: ", data.target_transforms),
        )
        for one in ones
    }
    if transforms:
        console.items("Transforms", transforms)
    masks = usage.masks
    if masks and masks.classes:
        console.items("Targets", {"Classes": ", ".join(masks.names)})
    elif usage.aim.task == "foreground" and data.kinds[1] == "images":
        told_of = f"> {masks.threshold:g}" if masks else "values / 255"
        console.items("Targets", {"Foreground": told_of})
    if data.test_output_path:
        console.items(
            "Inference output",
            {"Location": data.test_output_path, "Floating-point format": "single (32-bit)"},
        )
