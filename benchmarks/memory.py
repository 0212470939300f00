"""A training that keeps the memory it frees (`keep_memory`), against glibc as it is.

    python benchmarks/memory.py --out benchmarks/memory_<hardware>_<date>.md

Each measurement is a process of its own, the two in turn: median seconds of a training step on one
thread, and the largest resident memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer.__main__ import prepare_process

ROOT = Path(__file__).resolve().parent.parent
CASES = (
    ("layers/unet3d_brain.json", (2, 1, 64, 64, 64)),
    ("layers/unet3d_brain.json", (2, 1, 96, 96, 96)),
    ("layers/unet3d_hippocampus.json", (4, 1, 40, 56, 40)),
    ("layers/unet3d_small.json", (4, 1, 40, 56, 40)),
    ("layers/unet_small.json", (8, 3, 128, 128)),
)
STEPS, NOT_COUNTED = 8, 2
AS_IT_IS = {"MALLOC_ARENA_MAX": "0"}
"""glibc's default; that one is named, keep_memory leaves everything as it is."""


def measure(layers: str, shape: tuple[int, ...]) -> None:
    """Prints seconds of a step and the largest resident memory in MB."""
    prepare_process(1)
    import torch

    from trainer.device import in_layout
    from trainer.networks.build import build
    from trainer.networks.description import fitted, read_network

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build(fitted(read_network(ROOT / layers), shape[1], 2), folder=ROOT / "layers")
    optimizer = torch.optim.Adam(network.parameters())
    batch = in_layout(torch.rand(shape), torch.device("cpu"))
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(statistics.median(times[NOT_COUNTED:]), memory)


def measured(layers: str, shape: tuple[int, ...], more: dict[str, str]) -> tuple[float, float]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    command = [sys.executable, __file__, "--measure", layers, ",".join(map(str, shape))]
    ended = subprocess.run(
        command, env={**plain, **more}, check=True, capture_output=True, text=True
    )
    seconds, memory = ended.stdout.split()[-2:]
    return float(seconds), float(memory)


def page(rounds: int) -> str:
    """The measurements as a page."""
    rows = []
    for layers, shape in CASES:
        pairs = []
        for number in range(rounds):
            order = [{}, AS_IT_IS] if number % 2 else [AS_IT_IS, {}]
            found = [measured(layers, shape, more) for more in order]
            pairs.append(found if number % 2 else found[::-1])
        kept, plain = ([pair[side] for pair in pairs] for side in (0, 1))
        seconds = [statistics.median(one[0] for one in side) for side in (kept, plain)]
        memory = [statistics.median(one[1] for one in side) for side in (kept, plain)]
        size = "x".join(map(str, shape))
        rows.append(
            f"| `{Path(layers).name}`, {size} | {seconds[0]:.3f} | {seconds[1]:.3f} "
            f"| {seconds[1] / seconds[0]:.2f} | {memory[0]:.0f} | {memory[1]:.0f} |"
        )
    names = [
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.machine()
    import torch

    return "\n".join(
        [
            "# Memory that a training keeps, against glibc as it is",
            "",
            f"{date.today()}, one thread of {processor}, {' '.join(platform.libc_ver())}, torch "
            f"{torch.__version__}; medians of {rounds} processes each, in turn.",
            "",
            "| network, batch | s a step, kept | as it is | ratio | peak MB, kept | as it is |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--out", type=Path, help="also write the page there")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        layers, shape = given.measure
        measure(layers, tuple(int(side) for side in shape.split(",")))
        return
    text = page(given.rounds)
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
