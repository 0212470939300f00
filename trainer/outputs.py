"""What a run writes for people and parsers: the settings in its log, and the two text logs.

`<stem>_train<ext>` has a line a batch (seconds, epoch, batch, loss, gradient norm), and
`<stem>_test<ext>` a line an evaluated epoch, which ends in `Accuracy: 0.904`.
"""

from __future__ import annotations

import time
from pathlib import Path

from trainer.config import Config
from trainer.console import Console
from trainer.networks.build import SegmentationNetwork, parameter_counts
from trainer.parts import Parts, Usage


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


OPTIMIZER_FIELDS = {
    "sgd": ("learning_rate", "momentum", "dampening", "weight_decay", "nesterov"),
    "rmsprop": ("learning_rate", "alpha", "eps", "weight_decay", "momentum", "centered"),
    "adagrad": ("learning_rate", "lr_decay", "weight_decay"),
    "adam": ("learning_rate", "beta1", "beta2", "weight_decay", "eps", "amsgrad"),
    "adamw": ("learning_rate", "beta1", "beta2", "weight_decay", "eps", "amsgrad"),
}
OPTIMIZER_NAMES = {
    "sgd": "SGD",
    "rmsprop": "RMSProp",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamw": "AdamW",
}
LOSS_NAMES = {
    "bce": "BCE (Binary Cross-Entropy)",
    "dice": "Dice score",
    "nll": "NLL (Negative Log-Likelihood)",
}


def print_settings(
    config: Config,
    usage: Usage,
    parts: Parts,
    network: SegmentationNetwork,
    device: str,
    started_from: str,
    console: Console,
) -> None:
    """The settings of a run, section by section."""
    every, trainable = parameter_counts(network)
    console.section("Device(s)", {device: ""})
    console.section(
        "Neural Network",
        {
            "Model name": usage.network.label,
            "Total parameters": every,
            "Trainable parameters": trainable,
            "Weights": started_from,
        },
    )
    if config.trains and config.optimizer:
        fields = {
            name.replace("_", " ").capitalize(): getattr(config.optimizer, name)
            for name in OPTIMIZER_FIELDS[config.optimizer.type]
        }
        console.section("Optimizer", {"Type": OPTIMIZER_NAMES[config.optimizer.type], **fields})
        if schedule := config.optimizer.lr_scheduler:
            settings = {"Type": schedule.type.capitalize(), "Gamma": schedule.gamma}
            console.section("Learning rate scheduler", {**settings, "Verbose": schedule.verbose})
    if config.loss:
        eps = {"Eps": config.loss.eps} if config.loss.function == "dice" else {}
        source = {"Source": config.loss.source} if config.loss.source else {}
        console.section("Loss", {"Function": LOSS_NAMES[config.loss.function], **source, **eps})
    items: dict[str, object] = {
        f"{name.capitalize()} images": len(pairs) for name, pairs in parts.sizes().items()
    }
    items |= {f"Transform {t.name}": t.value for t in usage.data.transforms}
    items |= {f"Input transform {t.name}": t.value for t in usage.data.input_transforms}
    masks = usage.masks
    if masks and masks.classes:
        items |= {"Classes": ", ".join(masks.names)}
    else:
        items |= {"Foreground": f"> {masks.threshold:g}" if masks else "values / 255"}
    console.section("Dataset", items)
