"""What a training will take: its parts, each done once for real on a few images and timed.

python -m trainer --config=FILE --measure        (with --run-folder DIR also in result.json)
"""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from trainer.batch_norm import MOST_IMAGES, refresh_batch_norm
from trainer.checkpoint import Progress, Saver
from trainer.config import Config
from trainer.data.cache import SHARE_OF_FREE_MEMORY, ImageSet, free_memory_bytes
from trainer.data.samples import AnySamples, Item
from trainer.device import device_label, open_device, peak_memory_bytes, placed
from trainer.epoch import Run, Work, train_epoch
from trainer.errors import InputError
from trainer.evaluate import OwnSizeMasks
from trainer.networks.build import build
from trainer.networks.weights import find_weights
from trainer.optimizers import open_stepping
from trainer.outputs import TextLogs
from trainer.train import scored_part
from trainer.usage import open_run

BATCHES = 4
LONG_SECONDS = 10.0
"""A first batch that takes longer than this is followed by one more, not by several."""

REPEATS = 3
T = TypeVar("T")


def measure(config: Config, this: Run) -> dict[str, Any]:
    """Seconds of each part, and the memory; study/commands/plan.py extrapolates them.

    {"samples": of an epoch, "seconds": {build, read_image, step, batch_norm_image, evaluate_image,
    first_evaluate_image, checkpoint}, "images": {training, evaluation, batch_norm}, "batch_size",
    "measured_seconds", "reads_every_epoch", "memory_bytes", "gpu_memory_bytes", "device"}. A step
    is one batch. Nothing is written but a checkpoint where there is a folder for it. Raises
    InputError where nothing is trained.
    """
    if not config.trains:
        raise InputError("--measure", "this configuration trains nothing", "one with input_path")
    assert config.optimizer and config.loss
    began = time.monotonic()
    crops = 1
    if config.data.patches:  # a few crops tell what all take
        crops = config.data.patches.per_case
        patches = config.data.patches.model_copy(update={"per_case": 1})
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"patches": patches})}
        )
    device = open_device(this.device, this.threads, config.deterministic)
    parts, usage = open_run(config)
    torch.manual_seed(parts.seed)
    weights = find_weights(usage.network, usage.source)
    folder = Path(usage.source).absolute().parent
    network = build(usage.network, weights, folder=folder, trust_code=True)
    network = placed(network, device)
    stepping = open_stepping(network, config, device, [len(parts.training)])
    transform, loss = usage.transform(), usage.loss(config)
    work = Work(config, this, parts, usage, network, device, transform, loss)
    progress = Progress()
    saver = Saver(
        this.checkpoints,
        config,
        usage,
        network,
        stepping,
        progress,
        this.events,
        "measured",
        {},
        parts.seed,
    )
    built = time.monotonic() - began

    def read(items: Sequence[Item]) -> AnySamples:
        images = usage.open(items)
        images.preload(torch.get_num_threads(), this.stop.asked)
        this.stop.check()
        images.to(device)
        return images

    def train(images: AnySamples) -> None:
        progress.losses.clear()
        train_epoch(work, images, stepping, 1, TextLogs(None), saver, progress)

    batch = min(config.data.batch_size, len(parts.training))
    first, seconds_to_read = _timed(lambda: read(_spread(parts.training, batch)))
    _, warm_up = _timed(lambda: train(first))
    more = first
    if warm_up < LONG_SECONDS:
        more = read(_spread(parts.training, BATCHES * batch))
    repeats = REPEATS if warm_up * BATCHES < LONG_SECONDS else 1
    batches = math.ceil(len(more) / batch)
    step = statistics.median(_timed(lambda: train(more))[1] for _ in range(repeats)) / batches

    def refresh() -> None:
        refresh_batch_norm(network, more, transform, device, config.data.batch_size)

    if warm_up < LONG_SECONDS:
        refresh()  # the first one is slower
    _, normed = _timed(refresh)
    seconds = {"build": built, "read_image": seconds_to_read / len(first), "step": step}
    seconds["batch_norm_image"] = normed / min(len(more), MOST_IMAGES)
    if parts.evaluation:
        evaluated = read(_spread(parts.evaluation, config.data.test_batch_size))
        masks = None
        if isinstance(evaluated, ImageSet) and evaluated.own_size_comparable:
            masks = OwnSizeMasks(evaluated, device)

        def score() -> None:
            scored_part(work, evaluated, masks)

        for name in ("first_evaluate_image", "evaluate_image"):
            seconds[name] = _timed(score)[1] / len(evaluated)
    _, seconds["checkpoint"] = _timed(saver.best)
    raw, _ = more.batch(torch.zeros(1, dtype=torch.long, device=more.device))
    image_bytes = raw.nbytes * 4 // 3
    images = len(parts.training) + len(parts.evaluation)
    kept = image_bytes * len(parts.training) <= SHARE_OF_FREE_MEMORY * free_memory_bytes()
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "seconds": seconds,
        "images": {
            "training": len(parts.training),
            "evaluation": len(parts.evaluation),
            "batch_norm": min(len(parts.training), MOST_IMAGES),
        },
        "samples": len(parts.training) * crops,
        "batch_size": config.data.batch_size,
        "reads_every_epoch": not kept,
        "memory_bytes": resident + (image_bytes * images if kept else 0),
        "gpu_memory_bytes": peak_memory_bytes(device),
        "device": device_label(device),
        "threads": torch.get_num_threads(),
        "measured_seconds": time.monotonic() - began,
    }


def _timed(do: Callable[[], T]) -> tuple[T, float]:
    began = time.monotonic()
    result = do()
    return result, time.monotonic() - began


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the images, spread evenly: sizes differ from image to image."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]
