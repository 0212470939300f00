"""MLPerf's log of a training (`"mlperf_log": "unet3d.log"`), as its U-Net3D writes it.

A line is `:::MLLOG ` and a JSON object: namespace, time_ms (since 1970), event_type, key, value,
metadata with the place in this program. The order is that of MLPerf Training 2.0
(mlcommons/training @ aa344c7f, retired_benchmarks/unet3d/pytorch); epochs count from 1. The file
says what was done: `cache_clear` only where the configuration says that caches were cleared.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from torch import nn

from trainer.config import Config
from trainer.events import plain
from trainer.networks.build import SegmentationNetwork
from trainer.networks.unet import UNet
from trainer.parts import Parts
from trainer.usage import Usage

TOKEN = ":::MLLOG"
POINT, START, END = "POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END"
WARM_UPS = ("warmup", "linearwarmup")


class MlperfLog:
    """Writes the lines; with `path` None it does nothing. A resume (`more`) appends its epochs: how
    the run began stands there already."""

    def __init__(self, path: str | None, more: bool = False) -> None:
        self._file = None
        self._begun = bool(path) and more and Path(str(path)).is_file()
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = Path(path).open("a" if more else "w", encoding="utf-8", buffering=1)  # noqa: SIM115

    def _write(self, key: str, value: Any = None, kind: str = POINT, **metadata: Any) -> None:
        if self._file is None:
            return
        frame = inspect.currentframe()
        line = frame.f_back.f_lineno if frame and frame.f_back else 0
        place = {"file": "trainer/mlperf_log.py", "lineno": line}
        content = {
            "namespace": "",
            "time_ms": time.time_ns() // 1_000_000,
            "event_type": kind,
            "key": key,
            "value": value,
            "metadata": {**place, **metadata},
        }
        self._file.write(f"{TOKEN} {json.dumps(plain(content))}\n")

    def begin(self, config: Config) -> None:
        """The run begins; nothing is read yet."""
        if self._begun:
            return
        if config.submission.cache_cleared:
            self._write("cache_clear", True)
        self._write("init_start", kind=START)

    def set_up(
        self, config: Config, parts: Parts, usage: Usage, network: SegmentationNetwork
    ) -> None:
        """The network is there: what it is trained with, and its layers."""
        if self._file is None or self._begun:
            return
        self._write("seed", parts.seed)
        asked = config.submission
        for name in ("benchmark", "org", "division", "status", "platform"):
            self._write(f"submission_{name}", getattr(asked, name))
        for key, value in settings(config, usage).items():
            self._write(key, value)
        for name in tensor_names(network.body):
            self._write("weights_initialization", tensor=name)
        self._write("init_stop", kind=END)

    def run(self, parts: Parts) -> None:
        """From here on the data are read, and the time counts."""
        if self._begun:
            return
        self._write("run_start", kind=START)
        self._write("train_samples", len(parts.training))
        self._write("eval_samples", len(parts.evaluation))

    def sizes(self, config: Config, samples_per_epoch: int) -> None:
        """Of an epoch and of a step."""
        assert config.optimizer
        if self._begun:
            return
        group = config.optimizer.accumulate_batches
        self._write("samples_per_epoch", samples_per_epoch)
        self._write("global_batch_size", config.data.batch_size * group)
        self._write("gradient_accumulation_steps", group)

    def epoch_begins(self, epoch: int) -> None:
        """A block is one epoch, and its evaluation."""
        self._write("block_start", kind=START, first_epoch_num=epoch, epoch_count=1)
        self._write("epoch_start", kind=START, epoch_num=epoch)

    def epoch_ends(self, epoch: int, learning_rate: float) -> None:
        """All its batches are done."""
        self._write("epoch_stop", kind=END, epoch_num=epoch, current_lr=learning_rate)

    def evaluation_begins(self, epoch: int) -> None:
        """Of the validation cases, after this epoch."""
        self._write("eval_start", epoch, START, epoch_num=epoch)

    def evaluation_ends(self, epoch: int, metric: float | None) -> None:
        """With the metric that chooses the best epoch: mean_dice of MLPerf."""
        self._write("eval_accuracy", metric, epoch_num=epoch)
        self._write("eval_stop", epoch, END, epoch_num=epoch)

    def block_ends(self, epoch: int) -> None:
        """The epoch is over, with its evaluation."""
        self._write("block_stop", kind=END, first_epoch_num=epoch, epoch_count=1)

    def end(self, status: Literal["success", "aborted"] | None) -> None:
        """The run is over; one that did not reach its threshold is aborted."""
        self._write("run_stop", kind=END, status=status or "aborted")
        if self._file:
            self._file.close()


def settings(config: Config, usage: Usage) -> dict[str, Any]:
    """The values that MLPerf asks for, by its keys, in its order; None where a run has none."""
    o, patches, window = config.optimizer, config.data.patches, usage.window
    assert o
    warm_ups = [one.num_epochs for one in o.schedules if one.type in WARM_UPS]
    decays = [one for one in o.schedules if one.type == "multistep"]
    size = patches.size if patches else list(usage.size[::-1]) if usage.size else None
    return {
        "opt_name": o.type,
        "opt_base_learning_rate": o.learning_rate,
        "opt_learning_rate_warmup_epochs": sum(warm_ups),
        "opt_learning_rate_decay_boundary_epochs": decays[0].milestones if decays else [],
        "opt_learning_rate_decay_factor": decays[0].gamma if decays else 1.0,
        "opt_weight_decay": o.weight_decay,
        "opt_momentum": o.momentum,
        "oversampling": patches.foreground if patches else None,
        "training_input_shape": size,
        "validation_input_shape": window.size if window else size,
        "validation_overlap": window.overlap if window else None,
    }


def tensor_names(body: nn.Module) -> list[str]:
    """The layers that were initialised: of a U-Net by MLPerf's names, of others by their own."""
    if not isinstance(body, UNet):
        return [name for name, one in body.named_modules() if [*one.parameters(recurse=False)]]
    names: list[str] = []
    for level, block in enumerate(body.down):
        names += _block_names("input" if level == 0 else f"down{level - 1}", block)
    for number, level in enumerate(reversed(range(len(body.up)))):
        if [*body.up[level].parameters()]:
            names.append(f"up{number}_deconv")
        names += _block_names(f"up{number}", body.merge[level])
    return [*names, "output_conv"]


def _block_names(where: str, block: nn.Module) -> Iterator[str]:
    """Of two convolutions and their instance normalisation; MLPerf names no other one."""
    number = -1
    for one in block.children():
        if isinstance(one, nn.modules.conv._ConvNd):
            number += 1
            yield f"{where}_block_{number}_conv"
        elif isinstance(one, nn.modules.instancenorm._InstanceNorm):
            yield f"{where}_block_{number}_instancenorm"
