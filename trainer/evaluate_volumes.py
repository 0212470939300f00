"""The evaluation of whole volumes: windows, back to the scan's own grid, scores a case."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import Evaluation as Asked
from trainer.config import Precision
from trainer.console import Console
from trainer.data.volumes.grid import Grid, inside, resample
from trainer.data.volumes.surfaces import hd95_mm, surface_dice
from trainer.data.volumes.volume_set import VolumeSet
from trainer.data.volumes.windows import kept_region, predict_windows
from trainer.device import forward_of, on_device
from trainer.evaluate import Evaluation
from trainer.losses import LossFunction, probabilities
from trainer.metrics import Counts, VolumeScore, volume_summary
from trainer.networks.build import SegmentationNetwork
from trainer.outputs import printed_batches
from trainer.prediction_file import Sink
from trainer.tasks import Aim


def classes_at(logits: Tensor, field: Grid, there: Grid, aim: Aim) -> Tensor:
    """Logits (K, *field.shape) -> the class of each voxel (*there.shape), uint8.

    Logits are moved, not classes: an edge falls where they are equal. What lies outside of the
    field is background.
    """
    same = field.same_as(there)

    def moved(number: int) -> Tensor:
        one = logits[number : number + 1]
        return (one if same else resample(one, field, there, linear=True))[0]

    best = moved(0)
    if logits.shape[0] == 1:
        found = (probabilities(best[None, None], aim.reading)[0, 0] > 0.5).to(torch.uint8)
    else:  # one class after the other: all of them on a large scan's grid would be many gigabytes
        found = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
        for number in range(1, logits.shape[0]):
            one = moved(number)
            found[one > best] = number
            best = torch.maximum(best, one)
    if not same:
        found[~torch.from_numpy(inside(field, there)).to(found.device)] = 0
    return found


def _counts(found: Tensor, truth: Tensor, outputs: int) -> tuple[Counts, ...]:
    """Of the foreground alone, or of each class."""
    numbers = (1,) if outputs == 1 else range(outputs)
    rows = []
    for number in numbers:
        p, t = found == number, truth == number
        rows.append(torch.stack([(p & t).sum(), p.sum(), t.sum()]))
    told = torch.stack(rows).tolist()
    voxels = found.numel()
    return tuple(Counts(tp, p - tp, t - tp, voxels - p - t + tp) for tp, p, t in told)


def evaluate_volumes(
    network: SegmentationNetwork,
    samples: VolumeSet,
    device: torch.device,
    asked: Asked,
    batch_size: int,
    aim: Aim,
    loss: LossFunction | None = None,
    sink: Sink | None = None,
    console: Console | None = None,
    epochs: tuple[int, int] = (1, 1),
    precision: Precision = "auto",
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs the network over whole volumes in windows, `batch_size` at a time; `asked` says their
    size.

    The loss is that of a volume's averaged logits on its prepared grid; the scores are those of the
    classes on the scan's own grid, every case counting once.
    """
    network.eval()
    size = asked.window.size
    assert size
    scores: list[VolumeScore] = []
    losses: list[Tensor] = []
    printed = printed_batches(len(samples.cases))

    forward = forward_of(network, device, precision)
    for number, case in enumerate(samples.cases):
        check()
        image, label = samples.whole(number)
        logits = predict_windows(
            forward, on_device(image, device), size, asked.window, batch_size, check
        )
        region = kept_region(case.grid.shape, size, asked.window)
        field = case.grid.cropped([s.start for s in region], logits.shape[1:])
        if label is not None:
            prepared = on_device(label, device)[region]
            if loss is not None:
                losses.append(loss(logits[None], prepared[None, None].float()))
            if asked.window.cut_remainders:  # scored where it is predicted, as published
                there, truth = field, prepared
            elif case.grid.same_as(case.original):
                there, truth = case.grid, prepared
            else:
                there, truth = case.original, torch.from_numpy(case.original_label()).to(device)
            found = classes_at(logits, field, there, aim)
            scores.append(_score(case.name, found, truth, there, network, asked))
        if sink is not None:
            output = network.output(logits[None])[0].cpu()
            whole = torch.zeros((len(output), *case.grid.shape))
            whole[(slice(None), *region)] = output  # 0 where nothing was predicted
            sink.write(number, whole.numpy())
        if console and number + 1 in printed:
            place = f"Case [{number + 1:5d}/{len(samples.cases):5d}]"
            line = f"Eval  Epoch [{epochs[0]:3d}/{epochs[1]:3d}] : {place}"
            console.line(line + (f" | Dice: {scores[-1].dice:.3f}" if scores else ""))
    if not scores:
        return Evaluation(None, [])
    mean_loss = float(torch.stack(losses).mean()) if losses else None
    result = Evaluation(mean_loss, scores, aim.names)
    if console:
        told = volume_summary(scores, aim.names)
        by_class = ", ".join(f"{name} {value:.3f}" for name, value in told["class_dice"].items())
        console.line(f"Foreground Dice: {told['foreground_dice']:.3f} ({by_class})")
        for key, words in (("hd95_mm", "HD95 in mm"), ("surface_dice", "Surface Dice")):
            if key in told:
                values = [f"{n} {'-' if v is None else f'{v:.3f}'}" for n, v in told[key].items()]
                console.line(f"{words}: {', '.join(values)}")
    return result


def _score(
    name: str,
    found: Tensor,
    truth: Tensor,
    grid: Grid,
    network: SegmentationNetwork,
    asked: Asked,
) -> VolumeScore:
    outputs = network.description.classes
    counts = _counts(found, truth, outputs)
    if not asked.hd95 and asked.surface_dice_mm is None:
        return VolumeScore(name, counts)
    own: NDArray[np.uint8] = found.cpu().numpy()
    other: NDArray[np.uint8] = truth.cpu().numpy()
    numbers = range(1, max(2, outputs))
    pairs = [(other == n, own == n) for n in numbers]
    spacing, tolerance = grid.spacing_mm, asked.surface_dice_mm
    far = tuple(hd95_mm(t, f, spacing) for t, f in pairs) if asked.hd95 else ()
    near: tuple[float | None, ...] = ()
    if tolerance is not None:
        near = tuple(surface_dice(t, f, spacing, tolerance) for t, f in pairs)
    return VolumeScore(name, counts, far, near)
