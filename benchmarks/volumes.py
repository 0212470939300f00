"""Training on crops, and whole volumes in windows, against MONAI's standard pipeline.

    python benchmarks/volumes.py --data PREPARED --out benchmarks/volumes_<hardware>_<date>.md

PREPARED is a folder of `python -m trainer.prepare msd`; left out, phantoms are drawn. Both train
the same network from the same weights, with the same loss, optimizer and strength of augmentation,
on the same cases in memory; ours in channels last and with the layers that the trainer has for it,
MONAI's in the plain order and with torch's. Training: crops a second over epochs, MONAI with each
of its three loaders, the fastest counts. Windows: seconds a volume, Gaussian weights, the logits
compared first. They take turns; a ratio is that of medians. `--layers A B`: both on one page.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the trainer: see prepare_process
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn

from trainer.checkpoint import Progress, Saver
from trainer.config import Config, Window, parse_config
from trainer.console import Console
from trainer.data.volumes.volume_file import Case, open_volumes
from trainer.data.volumes.windows import predict_windows
from trainer.device import forward_of
from trainer.epoch import Run, Work, train_epoch
from trainer.events import EventLog
from trainer.networks.build import CPU_LAYERS, SegmentationNetwork, build, replace_layers
from trainer.optimizers import open_stepping
from trainer.outputs import TextLogs
from trainer.stopping import StopRequest
from trainer.usage import open_run

ROOT = Path(__file__).resolve().parent.parent
LEAST = 0.97
"""What is claimed: ours by MONAI's speed, in both."""

LOADERS = ("DataLoader", "DataLoader, workers", "ThreadDataLoader")
CPU = torch.device("cpu")
FOREGROUND, PER_CASE = 1 / 3, 2
DEGREES, ZOOM, AFFINE_SHARE = 15.0, 0.15, 0.2
FACTOR, FACTOR_SHARE = 0.25, 0.15
NOISE, NOISE_SHARE = 0.1, 0.1


def configuration(folder: Path, layers: str, patch: list[int], batch: int) -> Config:
    """Ours: crops, flips, turns, brightness and noise as a prepared base has them."""
    data = {
        "type": "hdf5",
        "input_path": str(folder / "train.h5"),
        "test_input_path": str(folder / "validation.h5"),
        "batch_size": batch,
        "patches": {"size": patch, "per_case": PER_CASE, "foreground": FOREGROUND},
        "transforms": [
            {"random_flip": 0.5},
            {"random_affine": {"probability": AFFINE_SHARE, "degrees": DEGREES, "zoom": ZOOM}},
        ],
        "input_transforms": [
            {
                "random_factor": {
                    "probability": FACTOR_SHARE,
                    "low": 1 - FACTOR,
                    "high": 1 + FACTOR,
                }
            },
            {"random_noise": {"probability": NOISE_SHARE, "std": NOISE}},
        ],
    }
    content = {
        "layers": layers,
        "data": data,
        "precision": "float32",
        "optimizer": {"type": "adamw", "learning_rate": 1e-3},
        "loss": {"function": "dice_ce"},
    }
    return parse_config({"neural_network": content})


def ours(config: Config, cases: int) -> tuple[SegmentationNetwork, Callable[[], None]]:
    """The network and an epoch of the trainer's own loop."""
    parts, usage = open_run(config)
    torch.manual_seed(0)
    network = build(usage.network, None, folder=ROOT, trust_code=False)
    console = Console()
    console.line = lambda *_: None  # type: ignore[method-assign]
    run = Run(console, EventLog(None), StopRequest(), None)
    samples = usage.open(parts.training[:cases])
    samples.preload(torch.get_num_threads())
    stepping = open_stepping(network, config, CPU, samples.groups)
    work = Work(config, run, parts, usage, network, CPU, usage.transform(), usage.loss(config))
    progress = Progress()
    saver = Saver(None, config, usage, network, stepping, progress, run.events, "", None, 0)
    epochs = iter(range(1, 1_000_000))

    def epoch() -> None:
        progress.losses.clear()
        train_epoch(work, samples, stepping, next(epochs), TextLogs(None), saver, progress)

    return network, epoch


def monai_loaders(cases: list[Case], patch: list[int], batch: int) -> dict[str, Any]:
    """MONAI's standard pipeline over the same cases, in its three loaders."""
    from monai.data.dataloader import DataLoader
    from monai.data.dataset import CacheDataset
    from monai.data.thread_buffer import ThreadDataLoader

    t: Any = importlib.import_module("monai.transforms")
    both = ["image", "label"]
    items = [{"image": case.image(), "label": case.label()[None]} for case in cases]
    angle = math.radians(DEGREES)
    steps: list[Any] = [
        t.EnsureTyped(keys=both),
        t.SpatialPadd(keys=both, spatial_size=patch),
        t.RandCropByPosNegLabeld(
            keys=both,
            label_key="label",
            spatial_size=patch,
            pos=FOREGROUND,
            neg=1 - FOREGROUND,
            num_samples=PER_CASE,
        ),
        *(t.RandFlipd(keys=both, prob=0.5, spatial_axis=axis) for axis in range(3)),
        t.RandAffined(
            keys=both,
            prob=AFFINE_SHARE,
            rotate_range=[angle] * 3,
            scale_range=[ZOOM] * 3,
            mode=["bilinear", "nearest"],
            padding_mode="zeros",
        ),
        t.RandScaleIntensityd(keys="image", factors=FACTOR, prob=FACTOR_SHARE),
        t.RandGaussianNoised(keys="image", prob=NOISE_SHARE, std=NOISE),
    ]
    dataset = CacheDataset(items, t.Compose(steps), cache_rate=1.0, progress=False)
    shared: dict[str, Any] = {"batch_size": batch // PER_CASE, "shuffle": True}
    workers = max(2, torch.get_num_threads())
    return {
        "DataLoader": DataLoader(dataset, num_workers=0, **shared),
        "DataLoader, workers": DataLoader(
            dataset, num_workers=workers, persistent_workers=True, **shared
        ),
        "ThreadDataLoader": ThreadDataLoader(dataset, num_workers=0, **shared),
    }


def monai_epoch(network: nn.Module, loader: Any) -> Callable[[], None]:
    """An epoch as MONAI's tutorials write it."""
    from monai.losses.dice import DiceCELoss

    function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0)

    def epoch() -> None:
        network.train()
        total = 0.0
        for batch in loader:
            inputs, labels = batch["image"], batch["label"]
            optimizer.zero_grad()
            loss = function(network(inputs), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()

    return epoch


def seconds(do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def in_turns(tasks: dict[str, Callable[[], Any]], count: int) -> dict[str, list[float]]:
    """Times of each, one after the other, each first in turn; one round before is not counted."""
    names = list(tasks)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(count + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            took = seconds(tasks[name])
            if number:
                found[name].append(took)
    return found


def sliding(
    network: SegmentationNetwork,
    plain: nn.Module,
    volumes: list[Tensor],
    size: list[int],
    batch: int,
) -> tuple[dict[str, Callable[[], list[Tensor]]], float]:
    """Both over the volumes, and how far their logits are apart, as a share of the largest."""
    from monai.inferers.utils import sliding_window_inference

    window = Window(size=size, overlap=0.5, weighting="gaussian")
    forward = forward_of(network, CPU, "float32")

    def our_way() -> list[Tensor]:
        return [predict_windows(forward, one, size, window, batch) for one in volumes]

    def monai_way() -> list[Tensor]:
        with torch.inference_mode():
            return [
                sliding_window_inference(
                    one[None], size, batch, plain, overlap=0.5, mode="gaussian"
                )[0]
                for one in volumes
            ]

    network.eval()
    plain.eval()
    apart = max(
        float((a - b).abs().max() / b.abs().max())
        for a, b in zip(our_way(), monai_way(), strict=True)
    )
    return {"ours": our_way, "MONAI": monai_way}, apart


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.machine()}"


def phantoms(folder: Path) -> Path:
    """Drawn and prepared volumes."""
    command = [sys.executable, "-m", "trainer.prepare"]
    raw, prepared = folder / "raw", folder / "prepared"
    for own in (
        ["phantoms", "pairs", str(raw), "--cases", "24", "--size", "72"],
        ["pairs", str(raw), str(prepared)],
    ):
        subprocess.run([*command, *own], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return prepared


def as_torch_has_it(network: nn.Module) -> nn.Module:
    """A copy in the plain order, of torch's own layers."""
    plain = copy.deepcopy(network)
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    replace_layers(plain, {own: theirs for theirs, own in CPU_LAYERS.items()})
    return plain


def part(options: argparse.Namespace, folder: Path, layers: str) -> list[str]:
    """The measurements of one network, as lines of a page."""
    patch, window = options.patch, options.window
    config = configuration(folder, layers, patch, options.batch)
    cases = open_volumes(config.data.input_path or "").cases[: options.cases]
    network, our_epoch = ours(config, len(cases))
    tasks: dict[str, Callable[[], Any]] = {"ours": our_epoch}
    plain = as_torch_has_it(network)
    for name, loader in monai_loaders(cases, patch, options.batch).items():
        tasks[name] = monai_epoch(copy.deepcopy(plain), loader)
    crops = len(cases) * PER_CASE
    epochs = in_turns(tasks, options.repeats)
    speeds = {name: crops / statistics.median(times) for name, times in epochs.items()}
    best = max(LOADERS, key=lambda name: speeds[name])
    seen = open_volumes(config.data.test_input_path or "").cases[: options.volumes]
    volumes = [torch.from_numpy(np.ascontiguousarray(case.image())) for case in seen]
    ways, apart = sliding(network, as_torch_has_it(network), volumes, window, options.batch)
    if apart > 0.02:
        raise SystemExit(f"the logits are not the same: they differ by {apart:.3f} of the largest")
    whole = in_turns(dict(ways), options.repeats)
    took = {name: statistics.median(times) / len(volumes) for name, times in whole.items()}
    count = sum(p.numel() for p in network.parameters())
    ratio = speeds["ours"] / speeds[best]
    faster = [b / a for a, b in zip(whole["ours"], whole["MONAI"], strict=True)]
    per_epoch = [b / a for a, b in zip(epochs["ours"], epochs[best], strict=True)]
    rows = [
        f"| {name}{', the fastest' if name == best else ''} | {speeds[name]:.2f} |"
        for name in LOADERS
    ]
    return [
        f"## `{Path(layers).name}`, {count:,} parameters",
        "",
        f"Training, crops of {'x'.join(map(str, patch))}, {options.batch} in a batch:",
        "",
        "| pipeline | crops a second |",
        "|---|---|",
        f"| ours | {speeds['ours']:.2f} |",
        *rows,
        "",
        f"Ratio {ratio:.2f} ({min(per_epoch):.2f} to {max(per_epoch):.2f}); claimed: {LEAST}.",
        "",
        f"Windows of {'x'.join(map(str, window))}, overlap 0.5, Gaussian, {options.batch} "
        f"at a time, {len(volumes)} volumes:",
        "",
        "| pipeline | seconds a volume |",
        "|---|---|",
        f"| ours | {took['ours']:.3f} |",
        f"| MONAI's sliding_window_inference | {took['MONAI']:.3f} |",
        "",
        f"Ratio {took['MONAI'] / took['ours']:.2f} ({min(faster):.2f} to {max(faster):.2f}); "
        f"claimed: {LEAST}. The logits differ by {apart:.0e} of the largest: MONAI cuts the "
        "weights off at 0.001, ours at 0.001 of the largest.",
        "",
    ]


def page(options: argparse.Namespace, folder: Path) -> str:
    """The measurements as a page."""
    import monai

    cases = open_volumes(str(folder / "train.h5")).cases[: options.cases]
    shapes = sorted(case.grid.shape for case in cases)
    lines = [
        "# Volumes: training on crops and windows, against MONAI",
        "",
        f"{date.today()}, {processor()}, threads: {torch.get_num_threads()}, "
        f"torch {torch.__version__}, MONAI {monai.__version__}.",
        "",
        f"Data: {'phantoms' if options.data is None else folder.name}, {len(cases)} training cases "
        f"of {'x'.join(map(str, shapes[0]))} to {'x'.join(map(str, shapes[-1]))} voxels, all in "
        "memory. Single precision, AdamW, Dice and cross-entropy; flips, turns, brightness and "
        "noise alike.",
        f"{options.repeats} rounds, all in turn; the ratio is that of the medians (above 1: "
        "ours is faster); from, to: the ratios within a round.",
        "",
    ]
    for layers in options.layers:
        lines += part(options, folder, layers)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="prepared volumes; left out: phantoms")
    parser.add_argument(
        "--layers", nargs="+", help="network files (default: layers.json of the data)"
    )
    parser.add_argument("--patch", type=int, nargs=3, default=[48, 64, 48])
    parser.add_argument("--window", type=int, nargs=3, default=[32, 32, 32])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--cases", type=int, default=16, help="training cases in an epoch")
    parser.add_argument("--volumes", type=int, default=6, help="volumes in windows")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: one a core")
    parser.add_argument("--out", type=Path, help="also write the page there")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data or phantoms(Path(scratch))
        options.layers = options.layers or [str(folder / "layers.json")]
        text = page(options, folder)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
