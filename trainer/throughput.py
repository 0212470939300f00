"""How fast a training is: `python -m trainer --config=FILE --benchmark [--warm-up N]`.

Each batch is timed by itself, from the end of the one before to its own, with its data. The time
between epochs belongs to none. A batch counts its samples once, however many batches make a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

WARM_UP = 4
"""Batches that are not counted unless told: the first ones choose algorithms and take memory."""


def synchronized(device: torch.device) -> None:
    """Returns when the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class BatchClock:
    """Times the batches of a training, after `warm_up` of them; `now` gives seconds."""

    def __init__(self, warm_up: int, now: Callable[[], float] = time.perf_counter) -> None:
        self._warm_up, self._now = warm_up, now
        self._last = 0.0
        self._batches: list[tuple[int, float]] = []

    def begin(self, device: torch.device) -> None:
        """An epoch begins."""
        synchronized(device)
        self._last = self._now()

    def batch(self, samples: int, device: torch.device) -> None:
        """A batch of so many samples is done."""
        synchronized(device)
        before, self._last = self._last, self._now()
        self._batches.append((samples, self._last - before))

    def result(self) -> dict[str, Any] | None:
        """{"throughput": samples a second, "latency_ms": {mean, p90, p95, p99} of a batch,
        "batches": counted, "warm_up"}; None where no batch came after the warm-up."""
        counted = self._batches[self._warm_up :]
        if not counted:
            return None
        seconds = np.array([took for _, took in counted])
        told = {f"p{share}": float(np.percentile(seconds, share)) for share in (90, 95, 99)}
        return {
            "throughput": sum(samples for samples, _ in counted) / float(seconds.sum()),
            "latency_ms": {n: 1000 * v for n, v in {"mean": float(seconds.mean()), **told}.items()},
            "batches": len(counted),
            "warm_up": self._warm_up,
        }
