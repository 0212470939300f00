"""One run of the trainer, from its configuration to its result: data, network, optimizer, loop."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.batch_norm import refresh_batch_norm
from trainer.board import Board
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
from trainer.data.arrays import Block
from trainer.data.cache import ImageSet
from trainer.data.samples import AnySamples, Item, Samples
from trainer.data.slice_files import Slice
from trainer.data.transforms import BatchTransform
from trainer.data.volumes.volume_file import Case
from trainer.data.volumes.volume_set import VolumeSet
from trainer.device import (
    check_precision,
    device_label,
    open_device,
    peak_memory_bytes,
    placed,
    possible,
)
from trainer.epoch import Run, Work, train_epoch
from trainer.errors import InputError, NotANumber, Stopped
from trainer.evaluate import Evaluation, OwnSizeMasks, as_result, evaluate
from trainer.evaluate_volumes import evaluate_volumes
from trainer.events import SCHEMA_VERSION
from trainer.mlperf_log import MlperfLog
from trainer.networks.build import SegmentationNetwork, build, parameter_counts
from trainer.networks.description import check_size
from trainer.networks.weights import find_weights, sha256
from trainer.optimizers import open_stepping
from trainer.outputs import (
    TextLogs,
    print_data,
    print_network,
    print_settings,
)
from trainer.parts import DRAWN
from trainer.prediction_file import Sink, open_sink
from trainer.throughput import WARM_UP, BatchClock
from trainer.usage import Usage, open_run

SCORES = ("accuracy", "foreground_dice", "iou", "class_dice")
"""What an epoch's event tells of its evaluation."""


def open_clock(config: Config, warm_up: int | None) -> BatchClock:
    """For a benchmark; raises InputError where nothing is trained."""
    if not config.trains:
        raise InputError("--benchmark", "this configuration trains nothing", "one with input_path")
    return BatchClock(WARM_UP if warm_up is None else warm_up)


def run(config: Config, this: Run) -> dict[str, Any]:
    """Trains, evaluates and predicts as the configuration says; returns what result.json keeps."""
    console = this.console
    if this.clock:
        unsaved = config.checkpoints.model_copy(update={"save": None})
        config = config.model_copy(update={"checkpoints": unsaved})
    device = open_device(this.device, this.threads, config.deterministic)
    check_precision(config.precision, device)

    # ---- data ----
    parts, usage = open_run(config)
    usage = replace(usage, precision=possible(usage.precision, device))
    make_folders(config)
    mlperf = MlperfLog(config.mlperf_log if config.trains else None, more=this.resume)
    mlperf.begin(config)

    # ---- network ----
    code = code_of(usage.network, Path(usage.source))
    last = None
    if this.resume and config.trains:
        last = read_last(this.checkpoints, usage.network, code)
    if config.seed == DRAWN:
        if last:
            parts = replace(parts, seed=last["origin"]["seed"])
        console.line(f"   Seed: {parts.seed}, {'as it was drawn' if last else 'drawn'}")
    torch.manual_seed(parts.seed)
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
    check_crops(network, usage, config)
    if this.checkpoints and code:
        put_beside(this.checkpoints, code)
    started_from = last["origin"]["weights"] if last else _started_from(config, weights, filled)
    console.line(f"   Weights: {started_from}")
    transform, loss = usage.transform(), usage.loss(config)
    writes = config.trains and not this.clock
    board = Board(config.tensorboard if writes else None, config.tensorboard_interval)
    work = Work(config, this, parts, usage, network, device, transform, loss, board)
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
        seed=parts.seed,
        parameters=parameter_counts(network)[0],
        images={part: len(pairs) for part, pairs in parts.sizes().items()},
        weights=started_from,
        resumed_after={key: last["training"][key] for key in ("epoch", "batches")}
        if last
        else None,
    )
    mlperf.set_up(config, parts, usage, network)
    mlperf.run(parts)
    training = _images(parts.training, usage, work)
    evaluation = None if this.clock else _images(parts.evaluation, usage, work)
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
    stepping = open_stepping(network, config, device, training.groups)
    rates, steps = stepping.rates, stepping.steps

    # ---- resume ----
    progress = Progress()
    if this.resume and not last:
        console.line(f"There is no {LAST} to go on from: the training begins anew")
    if last:
        stepping.load(last["training"])
        progress = Progress(**last["training"]["progress"])
        where = f"epoch {progress.event['epoch'] + 1}, batch {len(progress.losses) + 1}"
        console.line(f"Resuming at {where}")
    saver = Saver(
        this.checkpoints,
        config,
        usage,
        network,
        stepping,
        progress,
        this.events,
        started_from,
        training.facts(),
        parts.seed,
    )

    # ---- loop ----
    # A run that was killed between its last epoch and its end has nothing left to train.
    status = _ended(config, progress.event.get(parts.metric))
    mlperf.sizes(config, len(training))
    logs = TextLogs(config.outfile, more=last is not None)
    try:
        left = range(progress.event["epoch"] + 1, config.num_epochs + 1)
        for epoch in left if status is None else ():
            began = time.monotonic()
            rate = rates.set(epoch - 1, (epoch - 1) * steps)
            mlperf.epoch_begins(epoch)
            mean_loss = train_epoch(work, training, stepping, epoch, logs, saver, progress)
            mlperf.epoch_ends(epoch, rates.rate)
            due = not evaluation or config.evaluation.due(epoch, config.num_epochs, len(training))
            if due and not this.clock:
                batch_size = config.data.batch_size
                refresh_batch_norm(
                    network, training, work.transform, device, batch_size, usage.precision
                )
            scored = Evaluation(None, [])
            if evaluation and due:
                mlperf.evaluation_begins(epoch)
                scored = _evaluate(work, evaluation, masks, epoch)
            if scored.loss is not None and not math.isfinite(scored.loss):
                raise NotANumber(f"the evaluation's loss is {scored.loss} at epoch {epoch}")
            scores = as_result(scored, parts.evaluated_on) if scored.scores else {}
            if scores:
                logs.test(epoch, scored.loss, scores["accuracy"])
                mlperf.evaluation_ends(epoch, scores.get(parts.metric))
            mlperf.block_ends(epoch)
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
            board.epoch(event, [value for _, value in progress.losses], scored)
            # From here on the epoch is over; until here a stop leaves it to be evaluated again.
            saver.epoch_done(event)
            if due and (progress.best is None or _better(event, progress.best, parts.metric)):
                progress.best, progress.best_scores = event, scores
                saver.best()
            this.events.write("epoch", **event)
            saver.now_and_then()
            changed = rates.set(epoch, epoch * steps)
            if changed != rate and rates.verbose:
                console.line(f"Learning rate: {changed:.6g}")
            console.rule()
            if status := _ended(config, event[parts.metric]):
                value = f"{parts.metric} is {event[parts.metric]:.4f}"
                words = {
                    "success": f"stop_at {config.evaluation.stop_at} is reached",
                    "aborted": f"below diverged_below {config.evaluation.diverged_below}: aborted",
                }
                console.line(f"The training ends: {value}, {words[status]}")
                break
            this.stop.check()
    except Stopped:
        saver.last()
        raise
    finally:
        board.close()
    saver.last()
    mlperf.end(status)
    if this.clock:
        return _benchmarked(this.clock, console)
    return {
        "weights": started_from,
        "epochs": config.num_epochs,
        "status": status,
        "best": progress.best,
        "evaluation": progress.best_scores,
    }


def _benchmarked(clock: BatchClock, console: Console) -> dict[str, Any]:
    """Prints what the clock says; it is the result of the run."""
    told = clock.result()
    if told is None:
        found = "no batch came after the warm-up"
        raise InputError("--warm-up", found, "fewer than the batches of all epochs")
    latency = ", ".join(f"{name} {value:.3f}" for name, value in told["latency_ms"].items())
    console.line(f"Throughput: {told['throughput']:.3f} samples/s")
    console.line(f"Latency of a batch in ms: {latency} ({told['batches']} batches)")
    return told


def check_crops(network: SegmentationNetwork, usage: Usage, config: Config) -> None:
    """Raises InputError where the network cannot take the crops or windows of volumes."""
    sizes = {
        "data.patches, size": config.data.patches.size if config.data.patches else None,
        "evaluation.window, size": usage.window.size if usage.window else None,
    }
    checked: list[list[int]] = []
    for where, size in sizes.items():
        try:
            if size and size not in checked:
                network.check(size)
                checked.append(size)
        except InputError as error:
            raise InputError(where, error.found, error.accepted, error.fix) from None


def _ended(config: Config, value: float | None) -> Literal["success", "aborted"] | None:
    """Whether the metric of an epoch ends the training, and how."""
    asked = config.evaluation
    if value is None:
        return None
    if asked.stop_at is not None and value >= asked.stop_at:
        return "success"
    if asked.diverged_below is not None and value < asked.diverged_below:
        return "aborted"
    return None


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
    if config.trains and config.mlperf_log:
        folders["mlperf_log"] = str(Path(config.mlperf_log).parent)
    if config.trains and config.tensorboard:
        folders["tensorboard"] = config.tensorboard
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
    if isinstance(first, Slice):
        return first.files.targets is not None
    if isinstance(first, Block):
        return first.whole.target is not None or first.whole.label is not None
    return bool(first.masks) or first.label is not None


def _images(items: Sequence[Item], usage: Usage, work: Work) -> AnySamples | None:
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
    kind = "volumes" if isinstance(samples, VolumeSet) else kind
    work.run.console.line(f"Pre-loading {len(items)} {kind}...")
    samples.preload(torch.get_num_threads(), work.run.stop.asked)
    work.run.stop.check()
    samples.to(work.device)
    return samples


def _evaluate(work: Work, samples: Samples, masks: OwnSizeMasks | None, epoch: int) -> Evaluation:
    """Scores, and predictions where the configuration asks for them."""
    config, usage = work.config, work.usage
    with open_sink(config.data, epoch, samples, usage.masks, usage.threshold) as files:
        sink = work.board.watch(files)
        evaluation = scored_part(work, samples, masks, sink, work.run.console, epoch)
    work.board.images(sink, samples, work.transform, usage.aim, usage.threshold, epoch)
    for path in sink.paths if sink else ():
        work.run.console.line(f"Predictions are in {path}")
    return evaluation


def scored_part(
    work: Work,
    samples: Samples,
    masks: OwnSizeMasks | None,
    sink: Sink | None = None,
    console: Console | None = None,
    epoch: int = 1,
) -> Evaluation:
    """The scores of a part: of images and blocks in batches, of volumes in windows."""
    config, usage = work.config, work.usage
    shared: dict[str, Any] = {
        "loss": work.loss if samples.has_targets else None,
        "sink": sink,
        "console": console,
        "epochs": (epoch, config.num_epochs),
        "precision": usage.precision,
        "check": work.run.stop.check,
    }
    batch_size = config.data.test_batch_size
    if isinstance(samples, VolumeSet):
        assert usage.window and usage.window.size
        asked = config.evaluation.model_copy(update={"window": usage.window})
        return evaluate_volumes(
            work.network, samples, work.device, asked, batch_size, usage.aim, **shared
        )
    assert isinstance(work.transform, BatchTransform)
    return evaluate(
        work.network,
        samples,
        work.transform,
        work.device,
        batch_size,
        usage.aim,
        masks=masks,
        **shared,
    )
