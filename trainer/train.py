"""One run of the trainer, from its configuration to its result: data, network, optimizer, loop."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.batch_norm import refresh_batch_norm
from trainer.checkpoint import (
    LAST,
    Progress,
    Saver,
    check_code,
    code_of,
    load_weights,
    put_beside,
    read_last,
)
from trainer.config import Config
from trainer.console import Console
from trainer.data.array_set import ArraySet
from trainer.data.arrays import Block
from trainer.data.cache import ImageSet
from trainer.data.order import batch_seed, shuffled_batches
from trainer.data.samples import Item, Samples
from trainer.data.transforms import BatchTransform
from trainer.data.volumes.augment import VolumeTransform
from trainer.data.volumes.volume_file import Case
from trainer.device import (
    autocast,
    device_label,
    in_layout,
    on_device,
    open_device,
    peak_memory_bytes,
    placed,
)
from trainer.errors import InputError, NotANumber, Stopped
from trainer.evaluate import Evaluation, OwnSizeMasks, as_result, evaluate
from trainer.events import SCHEMA_VERSION, EventLog
from trainer.losses import LossFunction
from trainer.networks.build import SegmentationNetwork, build, parameter_counts
from trainer.networks.description import check_size
from trainer.networks.weights import find_weights, sha256
from trainer.optimizers import build_optimizer, step
from trainer.outputs import (
    Clock,
    TextLogs,
    print_data,
    print_network,
    print_settings,
    printed_batches,
)
from trainer.parts import Parts
from trainer.prediction_file import open_sink
from trainer.schedules import RateSchedule
from trainer.stopping import StopRequest
from trainer.usage import Usage, open_run

FLUSH_SECONDS = 1.0
"""Losses leave the device at most this often: each look makes a GPU wait."""

SCORES = ("accuracy", "foreground_dice", "iou", "class_dice")
"""What an epoch's event tells of its evaluation."""


@dataclass(frozen=True)
class Run:
    """Where a run reports, and what it was given beside its configuration.

    `trust_code`: the Python file of a network that only a checkpoint names may run.
    """

    console: Console
    events: EventLog
    stop: StopRequest
    checkpoints: Path | None
    device: str = "auto"
    threads: int | None = None
    resume: bool = False
    trust_code: bool = False


@dataclass(frozen=True)
class Work:
    """What both phases of a run work with."""

    config: Config
    run: Run
    parts: Parts
    usage: Usage
    network: SegmentationNetwork
    device: torch.device
    transform: BatchTransform | VolumeTransform
    loss: LossFunction | None


def run(config: Config, this: Run) -> dict[str, Any]:
    """Trains, evaluates and predicts as the configuration says; returns what result.json keeps."""
    console = this.console
    device = open_device(this.device, this.threads, config.deterministic)

    # ---- data ----
    parts, usage = open_run(config)
    make_folders(config)

    # ---- network ----
    torch.manual_seed(parts.seed)
    code = code_of(usage.network, Path(usage.source))
    last = None
    if this.resume and config.trains:
        last = read_last(this.checkpoints, usage.network, code)
    if config.layers is None:
        check_code(usage.checkpoint, code, usage.source)
    fresh = config.trains and not last
    weights = find_weights(usage.network, usage.source) if fresh else None
    # A network file in a configuration is its user's own word; a checkpoint may be of others.
    trusted = this.trust_code or config.layers is not None
    folder = Path(usage.source).absolute().parent
    network = build(usage.network, weights, folder=folder, trust_code=trusted)
    print_network(usage.network.label, network, device, console)
    filled = 1.0
    if last:
        network.body.load_state_dict(last["state"])
    elif config.checkpoints.load:
        kind = "HDF5 file" if "keras" in usage.checkpoint else "file"
        console.line(f"Loading model checkpoint from {kind}: {config.checkpoints.load}")
        filled = load_weights(network, usage.checkpoint, config, console)
    network = placed(network, device)
    if usage.size:
        network.check(usage.size)
    if this.checkpoints and code:
        put_beside(this.checkpoints, code)
    started_from = last["origin"]["weights"] if last else _started_from(config, weights, filled)
    console.line(f"   Weights: {started_from}")
    transform, loss = usage.transform(), usage.loss(config)
    work = Work(config, this, parts, usage, network, device, transform, loss)
    print_settings(config, console)
    for note in parts.notes:
        console.line(note)
    print_data(config, usage, parts, console)
    if parts.class_names and len(parts.class_names) < usage.network.classes:
        told = f"{usage.network.classes} outputs for {len(parts.class_names)} classes"
        console.line(f"WARNING: the network has {told}")
    if device.type == "cuda":
        console.line("*** CUDA available! Will train on GPU ***")
    this.events.write(
        "start",
        schema_version=SCHEMA_VERSION,
        device=device_label(device),
        threads=torch.get_num_threads(),
        parameters=parameter_counts(network)[0],
        images={part: len(pairs) for part, pairs in parts.sizes().items()},
        weights=started_from,
        resumed_after={key: last["training"][key] for key in ("epoch", "batches")}
        if last
        else None,
    )
    training = _images(parts.training, usage, work)
    evaluation = _images(parts.evaluation, usage, work)
    masks = None
    if isinstance(evaluation, ImageSet) and evaluation.own_size_comparable:
        masks = OwnSizeMasks(evaluation, device)

    # ---- evaluation alone ----
    if training is None:
        assert evaluation
        scored = _evaluate(work, evaluation, masks, epoch=1)
        result: dict[str, Any] = {"weights": started_from, "images": len(evaluation)}
        if scored.scores:
            result["evaluation"] = as_result(scored, parts.evaluated_on)
        return result

    # ---- optimizer ----
    assert config.optimizer
    optimizer = build_optimizer(network.parameters(), config.optimizer)
    rates = RateSchedule(optimizer, config.optimizer, config.num_epochs)
    steps = sum(math.ceil(count / config.data.batch_size) for count in training.groups)

    # ---- resume ----
    progress = Progress()
    if this.resume and not last:
        console.line(f"There is no {LAST} to go on from: the training begins anew")
    if last:
        optimizer.load_state_dict(last["training"]["optimizer"])
        progress = Progress(**last["training"]["progress"])
        where = f"epoch {progress.event['epoch'] + 1}, batch {len(progress.losses) + 1}"
        console.line(f"Resuming at {where}")
    saver = Saver(
        this.checkpoints,
        config,
        usage,
        network,
        optimizer,
        progress,
        this.events,
        started_from,
        training.facts(),
    )

    # ---- loop ----
    logs = TextLogs(config.outfile, more=last is not None)
    try:
        for epoch in range(progress.event["epoch"] + 1, config.num_epochs + 1):
            began = time.monotonic()
            rate = rates.set(epoch - 1, (epoch - 1) * steps)
            mean_loss = train_epoch(work, training, optimizer, rates, epoch, logs, saver, progress)
            refresh_batch_norm(network, training, work.transform, device, config.data.batch_size)
            scored = Evaluation(None, [])
            if evaluation:
                scored = _evaluate(work, evaluation, masks, epoch)
            if scored.loss is not None and not math.isfinite(scored.loss):
                raise NotANumber(f"the evaluation's loss is {scored.loss} at epoch {epoch}")
            scores = as_result(scored, parts.evaluated_on) if scored.scores else {}
            if scores:
                logs.test(epoch, scored.loss, scores["accuracy"])
            event = {
                "epoch": epoch,
                "epochs": config.num_epochs,
                "loss": mean_loss,
                "evaluated_on": scores.get("evaluated_on"),
                "evaluation_loss": scores.get("loss"),
                **{key: scores.get(key) for key in SCORES},
                "learning_rate": rate,
                "seconds": time.monotonic() - began,
                "memory_bytes": peak_memory_bytes(device),
            }
            # From here on the epoch is over; until here a stop leaves it to be evaluated again.
            saver.epoch_done(event)
            if progress.best is None or _better(event, progress.best, parts.metric):
                progress.best, progress.best_scores = event, scores
                saver.best()
            this.events.write("epoch", **event)
            saver.now_and_then()
            changed = rates.set(epoch, epoch * steps)
            if changed != rate and rates.verbose:
                console.line(f"Learning rate: {changed:.6g}")
            console.rule()
            this.stop.check()
    except Stopped:
        saver.last()
        raise
    saver.last()
    return {
        "weights": started_from,
        "epochs": config.num_epochs,
        "best": progress.best,
        "evaluation": progress.best_scores,
    }


def _better(event: dict[str, Any], best: dict[str, Any], metric: str) -> bool:
    """The metric is higher; without an evaluation the latest epoch is the best."""
    return event[metric] is None or best[metric] is None or bool(event[metric] > best[metric])


def _started_from(config: Config, weights: Path | None, filled: float) -> str:
    """In words, which weights the network starts from."""
    if config.checkpoints.load:
        part = "" if filled == 1 else f" (fills {filled:.1%} of the parameters, the rest random)"
        return f"checkpoint {config.checkpoints.load}{part}"
    if weights is None:
        return "random"
    return f"encoder from {weights.name} (sha256 {sha256(weights)[:12]}), the rest random"


def make_folders(config: Config) -> None:
    """Makes the folders that results go into; raises InputError for one that cannot be."""
    data = config.data
    folders = {"checkpoints.save": config.checkpoints.save if config.trains else None}
    if config.trains and config.outfile:
        folders["outfile"] = str(Path(config.outfile).parent)
    if data.test_input_path or data.split:
        folders["data.test_output_path"] = data.test_output_path
        if data.hdf5_outfile:
            folders["data.hdf5_outfile"] = str(Path(data.hdf5_outfile).parent)
    for key, folder in folders.items():
        try:
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            found = f"the folder '{folder}' cannot be made ({error.strerror})"
            raise InputError(key, found, "a folder that can be written to") from None


def has_truth(items: Sequence[Item]) -> bool:
    """Whether the samples of a part have targets."""
    first = items[0]
    if isinstance(first, Case):
        return first.has_label
    if isinstance(first, Block):
        return first.whole.target is not None or first.whole.label is not None
    return bool(first.masks) or first.label is not None


def _images(items: Sequence[Item], usage: Usage, work: Work) -> ImageSet | ArraySet | None:
    if not items:
        return None
    if has_truth(items):
        usage.check_targets()
    samples = usage.open(items)
    if has_truth(items):
        usage.check_output(samples.shape[1:])
    if usage.size is None and isinstance(samples, ImageSet):
        height, width = samples.own_size(0)
        check_size(usage.network, (width, height), f"{samples.pairs[0].image}, without a resize")
    kind = "images" if isinstance(samples, ImageSet) else "samples"
    work.run.console.line(f"Pre-loading {len(samples)} {kind}...")
    samples.preload(torch.get_num_threads(), work.run.stop.asked)
    work.run.stop.check()
    samples.to(work.device)
    return samples


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
    optimizer: torch.optim.Optimizer,
    rates: RateSchedule,
    epoch: int,
    logs: TextLogs,
    saver: Saver,
    progress: Progress,
) -> float:
    """One pass over the training samples, or what is left of it; the mean loss of its samples."""
    network, run, config = work.network, work.run, work.config
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
            if batch in printed:
                run.console.line(
                    f"Train Epoch [{epoch:3d}/{config.num_epochs:3d}] : Batch "
                    f"[{batch:5d}/{len(planned):5d}] (Loss = {value:.4f}; |g| = {norm:.4f}) "
                    f"[{clock}]"
                )
            if not math.isfinite(value):
                raise NotANumber(f"the loss is {value} at epoch {epoch}, batch {batch}")
            if not math.isfinite(norm):
                raise NotANumber(f"the gradient is {norm} at epoch {epoch}, batch {batch}")
        waiting.clear()

    network.train()
    flushed = time.monotonic()
    steps = (epoch - 1) * len(planned) + len(told)
    for inputs, targets, number in _steps(work, samples, epoch, batches, done=len(told)):
        clock.data()
        rates.set(epoch - 1, steps)
        steps += 1

        def compute(inputs: Tensor = inputs, targets: Tensor = targets, n: int = number) -> Tensor:
            if isinstance(optimizer, torch.optim.LBFGS):  # one batch, one function
                torch.manual_seed(n)
                run.stop.check()
            with autocast(work.device):
                logits = network(inputs)
            assert work.loss
            loss = work.loss(logits, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            return loss

        try:
            loss = step(optimizer, compute, again=len(planned) == 1)
        except Stopped:  # in the middle of a step, which is undone
            flush()
            raise
        waiting.append(torch.stack([loss.detach(), _gradient_norm(network)]))
        clock.compute()
        if run.stop.asked():
            flush()
            raise Stopped(run.stop.reason)
        if time.monotonic() - flushed > FLUSH_SECONDS:
            flush()
            saver.now_and_then()
            flushed = time.monotonic()
    flush()
    return sum(n * value for n, value in told) / len(samples)


def _evaluate(work: Work, samples: Samples, masks: OwnSizeMasks | None, epoch: int) -> Evaluation:
    """Scores, and predictions where the configuration asks for them."""

    with open_sink(
        work.config.data, epoch, samples, work.usage.masks, work.usage.threshold
    ) as sink:
        evaluation = evaluate(
            work.network,
            samples,
            work.transform,
            work.device,
            work.config.data.test_batch_size,
            work.usage.aim,
            loss=work.loss if samples.has_targets else None,
            masks=masks,
            sink=sink,
            console=work.run.console,
            epochs=(epoch, work.config.num_epochs),
            check=work.run.stop.check,
        )
    for path in sink.paths if sink else ():
        work.run.console.line(f"Predictions are in {path}")
    return evaluation
