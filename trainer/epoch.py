"""One epoch of training: batches in their order, steps of the optimizer, losses as they come.

`Run` is where a run reports, `Work` what its epochs and evaluations work with; train.py makes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.board import Board
from trainer.checkpoint import Progress, Saver
from trainer.config import Config
from trainer.console import Console
from trainer.data.order import batch_seed, shuffled_batches
from trainer.data.samples import Samples
from trainer.data.volumes.augment import AnyTransform
from trainer.data.volumes.volume_set import VolumeSet
from trainer.device import autocast, in_layout, on_device
from trainer.errors import NotANumber, Stopped
from trainer.events import EventLog
from trainer.losses import LossFunction
from trainer.networks.build import SegmentationNetwork
from trainer.optimizers import Stepping, step
from trainer.outputs import Clock, TextLogs, printed_batches
from trainer.parts import Parts
from trainer.stopping import StopRequest
from trainer.throughput import BatchClock
from trainer.usage import Usage

FLUSH_SECONDS = 1.0
"""Losses leave the device at most this often: each look makes a GPU wait."""


@dataclass(frozen=True)
class Run:
    """Where a run reports, and what it was given beside its configuration.

    `trust_code`: the Python file of a network that only a checkpoint names may run. With a `clock`
    the run is a benchmark: it trains, and neither evaluates nor writes a checkpoint.
    """

    console: Console
    events: EventLog
    stop: StopRequest
    checkpoints: Path | None
    device: str = "auto"
    threads: int | None = None
    resume: bool = False
    trust_code: bool = False
    clock: BatchClock | None = None


@dataclass(frozen=True)
class Work:
    """What both phases of a run work with."""

    config: Config
    run: Run
    parts: Parts
    usage: Usage
    network: SegmentationNetwork
    device: torch.device
    transform: AnyTransform
    loss: LossFunction | None
    board: Board = field(default_factory=Board)


def _steps(
    work: Work, samples: Samples, epoch: int, batches: Sequence[Tensor], done: int = 0
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The batches of an epoch on the device, after the first `done`, each with its seed."""
    seed = work.parts.seed
    for batch, indices in enumerate(batches[done:], start=done + 1):
        raw, raw_targets = samples.batch(indices)
        assert raw_targets is not None
        raw = on_device(raw, work.device)
        raw_targets = on_device(raw_targets, work.device)
        number = batch_seed(seed, epoch, batch)
        torch.manual_seed(number)  # dropout
        inputs, targets = work.transform.augmented(raw, raw_targets, indices, epoch, seed)
        yield in_layout(inputs, work.device), targets, number


def _gradient_norm(network: nn.Module) -> Tensor:
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def train_epoch(
    work: Work,
    samples: Samples,
    stepping: Stepping,
    epoch: int,
    logs: TextLogs,
    saver: Saver,
    progress: Progress,
) -> float:
    """One pass over the training samples, or what is left of it; the mean loss of its samples.

    With `accumulate_batches` a step has the mean gradient of several batches, weighed by their
    samples. What a stop leaves of them is computed again, so that a resume drops nothing.
    """
    network, run, config = work.network, work.run, work.config
    optimizer, scaler = stepping.optimizer, stepping.scaler
    assert config.optimizer
    group = config.optimizer.accumulate_batches
    if isinstance(samples, VolumeSet):
        samples.begin(work.parts.seed, epoch)
    batches = shuffled_batches(
        work.parts.seed, epoch, samples.groups, config.data.batch_size, samples.device
    )
    planned = [len(batch) for batch in batches]
    printed = printed_batches(len(planned))
    waiting: list[Tensor] = []
    told = progress.losses
    clock = Clock()

    def flush() -> None:
        """Brings the waiting losses from the device in one go, prints and checks them."""
        for value, norm in torch.stack(waiting).tolist() if waiting else []:
            told.append((planned[len(told)], value))
            batch = len(told)
            logs.train(epoch, batch, value, norm)
            before = (epoch - 1) * len(planned)
            work.board.batch(before + batch, config.num_epochs * len(planned), value)
            if batch in printed:
                run.console.line(
                    f"Train Epoch [{epoch:3d}/{config.num_epochs:3d}] : Batch "
                    f"[{batch:5d}/{len(planned):5d}] (Loss = {value:.4f}; |g| = {norm:.4f}) "
                    f"[{clock}]"
                )
            if not math.isfinite(value):
                raise NotANumber(f"the loss is {value} at epoch {epoch}, batch {batch}")
            if not math.isfinite(norm) and not scaler.is_enabled():  # which lowers its scale
                raise NotANumber(f"the gradient is {norm} at epoch {epoch}, batch {batch}")
        waiting.clear()

    network.train()
    if run.clock:
        run.clock.begin(work.device)
    flushed = time.monotonic()
    losses: list[Tensor] = []
    begun = len(told)
    for at, (inputs, targets, number) in enumerate(
        _steps(work, samples, epoch, batches, done=begun), start=begun
    ):
        clock.data()
        first = at - at % group
        share = planned[at] / sum(planned[first : first + group])

        def compute(
            inputs: Tensor = inputs,
            targets: Tensor = targets,
            n: int = number,
            share: float = share,
            fresh: bool = at == first,
        ) -> Tensor:
            if isinstance(optimizer, torch.optim.LBFGS):  # one batch, one function
                torch.manual_seed(n)
                run.stop.check()
            with autocast(work.device, work.usage.precision):
                logits = network(inputs)
            assert work.loss
            loss = work.loss(logits, targets)
            if fresh:
                optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss * share if share != 1 else loss).backward()
            return loss

        if at + 1 < min(first + group, len(planned)):
            losses.append(compute().detach())
            clock.compute()
            if run.clock:
                run.clock.batch(planned[at], work.device)
            if run.stop.asked():
                flush()
                raise Stopped(run.stop.reason)
            continue
        stepping.rates.set(epoch - 1, (epoch - 1) * stepping.steps + at // group)
        try:
            loss = step(optimizer, compute, len(planned) == 1, scaler)
        except Stopped:  # in the middle of a step, which is undone
            flush()
            raise
        norm = _gradient_norm(network)
        waiting += [torch.stack([one, norm]) for one in (*losses, loss.detach())]
        losses.clear()
        clock.compute()
        if run.clock:
            run.clock.batch(planned[at], work.device)
        if run.stop.asked():
            flush()
            raise Stopped(run.stop.reason)
        if time.monotonic() - flushed > FLUSH_SECONDS:
            flush()
            saver.now_and_then()
            flushed = time.monotonic()
    flush()
    return sum(n * value for n, value in told) / len(samples)
