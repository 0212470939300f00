#!/usr/bin/env python3
"""The published breast ultrasound study on one GPU: images/s, and where the rest of the time goes.

    python benchmarks/gpu_study.py --data ./data --out gpu-study --time-limit 3000

Needs Python 3.11 or newer, torch 2.11 or newer, and the packages of requirements.txt: installed, or
as wheels in a folder (--wheels, no network). Everything is kept in --out; the same call again goes
on where a time limit, a Ctrl-C or a kill ended it. Prints a dated page, and writes it and its
numbers to --out (page.md, result.json). --device cpu tries it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from datetime import date
from pathlib import Path
from typing import Any

from run_times import PARTS, read_trial

PROGRAM_FOLDER = Path(__file__).resolve().parent.parent
STUDY = "gpu-study"
PUBLISHED = {
    "select-on": "test",
    "augment": "none",
    "optimizers": "adam,rmsprop,sgd",
    "loss": "bce,dice",
    "lr-scheduler-gamma": 0.99,
}
PUBLISHED_FLAGS = ["--lr-scheduler", "--no-prune", "--launcher", "process"]
RESERVE_SECONDS = 20.0
"""Of a time limit, for the end of the study and the page."""


# ---- what runs in a child, with torch ----
def probe(layers: str, size: int, device_name: str) -> dict[str, Any]:
    """FLOP of an image, what the device reaches in a matrix product, and what it is called."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainer.device import autocast, open_device
    from trainer.networks.build import build
    from trainer.networks.description import read_network

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        sys.exit(f"torch {torch.__version__} is too old: 2.11 or newer is needed")
    device = open_device(device_name, None, False)
    network = build(read_network(layers).model_copy(update={"weights": None})).to(device)
    images = torch.rand(2, network.description.in_channels, size, size, device=device)
    with FlopCounterMode(display=False) as counter, autocast(device):
        network(images).float().mean().backward()

    gpu = device.type == "cuda"
    n, kind, repeats = (8192, torch.bfloat16, 20) if gpu else (2048, torch.float32, 1)
    left, right = (torch.rand(n, n, device=device, dtype=kind) for _ in range(2))
    taken = []
    for _ in range(5):
        before = time.perf_counter()
        for _ in range(repeats):
            left @ right
        if gpu:
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - before) / repeats)
    return {
        "flop_an_image": counter.get_total_flops() / len(images),
        "peak_flop_a_second": 2 * n**3 / min(taken),
        "peak_of": f"{str(kind).removeprefix('torch.')} matrices of {n}x{n}",
        "parameters": sum(p.numel() for p in network.parameters()),
        "hardware": torch.cuda.get_device_name(device) if gpu else cpu_name(),
        "software": f"{cpu_name()}, torch {torch.__version__}, CUDA {torch.version.cuda or '-'}, "
        f"Python {platform.python_version()}",
    }


def cpu_name() -> str:
    """Like "2 cores of AMD EPYC"."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{count} cores of {name}"


# ---- what the run folders tell ----
def breakdown(study: Path, wall_seconds: float, probed: dict[str, Any]) -> dict[str, Any]:
    """Rates, and where the wall time of all calls went, from the study's run folders."""
    trials = [t for t in map(read_trial, sorted(study.glob("trial-*"))) if t]
    tests = [t for t in map(read_trial, sorted(study.glob("test-*"))) if t]
    parts = {key: sum(t.parts[key] for t in trials) for key in PARTS}
    parts["test"] = sum(t.span for t in tests)
    parts["driver"] = wall_seconds - sum(t.span for t in [*trials, *tests])
    images = sum(len(t.epoch_seconds) * t.images for t in trials)
    epochs = [seconds for t in trials for seconds in t.epoch_seconds]

    share = probed["flop_an_image"] / probed["peak_flop_a_second"]

    def rate(seconds: float) -> float:
        return images / seconds if seconds else 0.0

    return {
        "wall_seconds": wall_seconds,
        "trials": len(trials),
        "epochs": len(epochs),
        "training_images": max((t.images for t in trials), default=0),
        "images_a_second_training": rate(parts["training"]),
        "images_a_second_epochs": rate(sum(epochs)),
        "images_a_second_end_to_end": rate(wall_seconds),
        "epoch_seconds": statistics.median(epochs) if epochs else 0.0,
        "share_of_peak": rate(parts["training"]) * share,
        "memory_bytes": max((t.memory_bytes for t in trials), default=0),
        "parts_seconds": parts,
    }


# ---- the page ----
def shown(value: float, form: str) -> str:
    """A number in a format; a dash where there is none."""
    return format(value, form) if value else "-"


def page(result: dict[str, Any]) -> str:
    """The result as Markdown; every number with its definition."""
    asked, probed, told = result["settings"], result["probe"], result["study"]
    wall, best = told["wall_seconds"], result["best"]
    memory = told["memory_bytes"] or result["gpu_memory_bytes"]
    rates = ("training", "epochs", "end_to_end")
    training, epochs, whole = (shown(told[f"images_a_second_{rate}"], ".1f") for rate in rates)
    epoch, share = shown(told["epoch_seconds"], ".2f"), shown(told["share_of_peak"], ".1%")
    accuracy = shown(best["max_acc"] if best else 0, ".3f")
    kept = f"{memory / 1e9:.2f} GB" if memory else "-"
    by = "highest of a trial, by torch" if told["memory_bytes"] else "whole GPU, by nvidia-smi"
    missing = "" if asked["device"] == "cuda" else (
        "**GPU figures are missing: no GPU was at hand.** The numbers below are of a CPU at this "
        "size. They show that the benchmark works, and claim nothing about a GPU.\n\n"
    )  # fmt: skip
    options = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in asked.items())
    shares = "\n".join(
        f"| {text} | {told['parts_seconds'][key]:.1f} | "
        f"{told['parts_seconds'][key] / wall if wall else 0:.1%} |"
        for key, text in PARTS.items()
    )
    return f"""# The published study on {probed["hardware"]}, {result["date"]}

{missing}{told["trials"]} trial(s) ended, with {told["epochs"]} epochs together, of \
{asked["num_trials"]} trials of {asked["num_epochs"]} epochs asked: {told["training_images"]} \
training images at {asked["image_size"]}x{asked["image_size"]} pixels, batches of \
{asked["batch_size"]}, network {asked["layers"]} ({probed["parameters"] / 1e6:.2f} M parameters, \
weights at start: {result["weights"]}), no augmentation, no pruning; {probed["software"]}. \
Published, for comparison: 50 trials of 50 epochs, ResUNet, 702 images at 256x256, about ten hours \
on one A100X.

| what | value | definition |
|---|---|---|
| images/s, training | {training} | training images x ended epochs / \
time in training alone |
| images/s, epochs | {epochs} | the same images / time in epochs with \
their evaluation |
| images/s, end to end | {whole} | the same images / wall time of \
the study; published: 49 (ResUNet, 256x256) |
| seconds an epoch | {epoch} | median; training and evaluation, without \
checkpoints |
| share of the device's peak | {share} | images/s in training x \
{probed["flop_an_image"] / 1e9:.2f} GFLOP an image (forward and backward of convolutions and \
products, a multiply-add is 2) / {probed["peak_flop_a_second"] / 1e12:.2f} TFLOP/s, measured here \
({probed["peak_of"]}, highest of all calls) |
| GPU memory | {kept} | {by} |
| host memory | {result["host_memory_bytes"] / 1e9:.2f} GB | highest resident size of one process |
| accuracy | {accuracy} | best epoch of the best trial, CHOSEN ON \
THE TEST IMAGES (published protocol, optimistic); published: 0.904 |
| wall time | {wall:.0f} s | {result["calls"]} call(s) of the driver, added up |

| where the wall time goes | s | share |
|---|---|---|
{shares}

Repeat: `python benchmarks/gpu_study.py {options} --data DATA --out FOLDER`
"""


# ---- the run ----
def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    form, text = argparse.ArgumentDefaultsHelpFormatter, str(__doc__).partition("\n")[0]
    parser = argparse.ArgumentParser(description=text, formatter_class=form)
    parser.add_argument("--data", type=Path, default=Path("data"), help="train and test images")
    parser.add_argument("--out", type=Path, default=Path("gpu-study"), help="folder of this run")
    parser.add_argument("--num-trials", type=int, default=50, help="trials")
    parser.add_argument("--num-epochs", type=int, default=50, help="epochs of a trial")
    parser.add_argument("--layers", default="layers/resunet.json", help="network file")
    parser.add_argument("--image-size", type=int, default=256, help="side in pixels")
    parser.add_argument("--batch-size", type=int, default=32, help="images")
    parser.add_argument("--weights", default="auto", help="as of rml_optimization.py")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to train")
    parser.add_argument("--time-limit", type=float, help="seconds of this call, all in all")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to use, without the network")
    return parser.parse_args(arguments)


def gpu_memory_bytes() -> int:
    """What the first GPU has in use; 0 where nvidia-smi does not say."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        told = subprocess.run(query, capture_output=True, text=True, timeout=20)
        return int(told.stdout.split()[0]) * 2**20
    return 0


def write_json(path: Path, content: Any) -> None:
    """Written beside and renamed."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def read_list(path: Path) -> list[dict[str, Any]]:
    """The list in a JSON file; empty where there is none."""
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []


def is_begun(storage: Path) -> bool:
    """Whether an earlier call began the study."""
    if storage.exists():
        with closing(sqlite3.connect(storage)) as database, suppress(sqlite3.OperationalError):
            asked = "SELECT 1 FROM studies WHERE study_name = ?"
            return database.execute(asked, (STUDY,)).fetchone() is not None
    return False


def run_driver(command: list[str], out: Path, environment: dict[str, str], gpu: bool) -> int:
    """Runs the study to its end or its time limit; its exit code. Each call leaves its times in
    calls.json while it runs, so that a kill loses five seconds of them at most."""
    call: dict[str, Any] = {"began": time.time(), "gpu_memory_bytes": 0}
    calls = [*read_list(out / "calls.json"), call]
    driver = subprocess.Popen(command, cwd=out, env=environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver gets it too, and stops its trial
    signal.signal(signal.SIGTERM, lambda *_: driver.terminate())
    exit_code: int | None = None
    while exit_code is None:
        with suppress(subprocess.TimeoutExpired):
            exit_code = driver.wait(timeout=5)
        if gpu:
            call["gpu_memory_bytes"] = max(call["gpu_memory_bytes"], gpu_memory_bytes())
        unit = 1 if sys.platform == "darwin" else 1024
        highest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
        call |= {"ended": time.time(), "exit_code": exit_code, "host_memory_bytes": highest}
        write_json(out / "calls.json", calls)
    return exit_code


def report(asked: argparse.Namespace, out: Path, probed: dict[str, Any]) -> dict[str, Any]:
    """All numbers of all calls so far."""
    calls, study = read_list(out / "calls.json"), out / "runs" / STUDY
    records = read_list(study / "list_acc.json")
    done = [record for record in records if record["state"] == "COMPLETE"]
    names = ("device", "num_trials", "num_epochs", "image_size", "batch_size")
    settings = {key: getattr(asked, key) for key in names}
    return {
        "date": date.today().isoformat(),
        "settings": settings | {"layers": "/".join(Path(asked.layers).parts[-2:])},
        "probe": probed,
        "study": breakdown(study, sum(c["ended"] - c["began"] for c in calls), probed),
        "calls": len(calls),
        "gpu_memory_bytes": max((c["gpu_memory_bytes"] for c in calls), default=0),
        "host_memory_bytes": max((c["host_memory_bytes"] for c in calls), default=0),
        "best": max(done, key=lambda record: record["max_acc"], default=None),
        "weights": str(records[0]["weights"]).partition(" (")[0] if records else "-",
    }


def main(arguments: list[str]) -> int:
    """Runs the benchmark; the exit code is the driver's."""
    if arguments[:1] == ["--probe"]:
        from trainer.errors import RmlError

        try:
            print(json.dumps(probe(arguments[1], int(arguments[2]), arguments[3])))
        except RmlError as error:
            sys.exit(f"error: {error}")
        return 0
    began, asked = time.monotonic(), parse(arguments)
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    given = Path(asked.layers)
    layers = str((given if given.is_file() else PROGRAM_FOLDER / given).resolve())
    with tempfile.TemporaryDirectory() as packages:
        if asked.wheels:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
            wheels = [str(path) for path in sorted(asked.wheels.glob("*.whl"))]
            if code := subprocess.run([*pip, "--target", packages, *wheels]).returncode:
                return code
        search = (str(PROGRAM_FOLDER), packages, os.environ.get("PYTHONPATH", ""))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in search if path)}
        command = [sys.executable, __file__, "--probe", layers, str(asked.image_size), asked.device]
        told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if told.returncode != 0:
            return told.returncode
        probed = json.loads(told.stdout)

        if (out / "result.json").exists():  # the highest of all calls is the nearest to the truth
            before = json.loads((out / "result.json").read_text(encoding="utf-8"))["probe"]
            probed = max(before, probed, key=lambda each: float(each["peak_flop_a_second"]))
        options = PUBLISHED | {"study-name": STUDY, "data": asked.data.resolve()}
        options |= {"layers": layers, "num-trials": asked.num_trials}
        for name in ("num_epochs", "image_size", "batch_size", "weights"):
            options[name.replace("_", "-")] = getattr(asked, name)
        if asked.time_limit:
            left = asked.time_limit - (time.monotonic() - began) - RESERVE_SECONDS
            options["timeout"] = f"{max(1.0, left):.0f}s"
        command = [sys.executable, str(PROGRAM_FOLDER / "rml_optimization.py"), *PUBLISHED_FLAGS]
        command += [text for key, value in options.items() for text in (f"--{key}", str(value))]
        command += ["--gpu" if asked.device == "cuda" else "--no-gpu"]
        command += ["--resume"] if is_begun(out / "rml_study.db") else []
        exit_code = run_driver(command, out, environment, asked.device == "cuda")
    result = report(asked, out, probed)
    write_json(out / "result.json", result)
    (out / "page.md").write_text(page(result), encoding="utf-8")
    print(page(result))
    print(f"Kept in {out}. Where trials are left, the same call goes on with them.")
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
