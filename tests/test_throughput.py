"""--benchmark: what a clock says of batches, and a real run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import Ended
from trainer.throughput import BatchClock

CPU = torch.device("cpu")


def test_batches_after_the_warm_up_are_counted() -> None:
    times = iter([0.0, 5.0, 6.0, 8.0, 100.0, 104.0, 104.5])
    clock = BatchClock(1, lambda: next(times))
    clock.begin(CPU)
    for samples in (4, 4, 3):  # 5 s are the warm-up's, then 1 s and 2 s
        clock.batch(samples, CPU)
    clock.begin(CPU)  # what lies between two epochs is no batch's
    for samples in (4, 4):  # 4 s and 0.5 s
        clock.batch(samples, CPU)
    told = clock.result()
    assert told
    assert told["throughput"] == pytest.approx((4 + 3 + 4 + 4) / 7.5)
    assert told["batches"] == 4 and told["warm_up"] == 1
    assert told["latency_ms"]["mean"] == pytest.approx(1875)
    for share in (90, 95, 99):  # numpy's own, over the four
        expected = np.percentile([1000, 2000, 4000, 500], share)
        assert told["latency_ms"][f"p{share}"] == pytest.approx(expected)


def test_nothing_is_told_of_a_warm_up_alone() -> None:
    clock = BatchClock(2, lambda: 0.0)
    clock.begin(CPU)
    clock.batch(1, CPU)
    assert clock.result() is None


@pytest.mark.slow
def test_a_benchmark_trains_and_writes_no_checkpoint(
    configuration: Callable[..., dict[str, Any]], train: Callable[..., Ended]
) -> None:
    content = configuration(
        num_epochs=3,
        checkpoints={"save": "model"},
        optimizer={"accumulate_batches": 2},
    )
    ended = train(content, "run", "--benchmark", "--warm-up", "2")
    assert ended.code == 0, ended.err
    told = ended.result
    assert told["batches"] == 3 * 3 - 2  # micro-batches, each once
    assert 0 < told["latency_ms"]["mean"] <= told["latency_ms"]["p99"]
    size = content["neural_network"]["data"]["batch_size"]
    assert told["throughput"] <= size / (told["latency_ms"]["mean"] / 1000) * 1.0001
    assert "Throughput: " in ended.out
    assert not list(ended.folder.rglob("*.pt"))
    assert [event["evaluated_on"] for event in ended.epochs] == [None] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--warm-up", "2"], "0 or more, with --benchmark"),
        (["--benchmark", "--warm-up", "-1"], "0 or more, with --benchmark"),
        (["--benchmark", "--measure"], "stands together with --measure"),
        (["--benchmark", "--warm-up", "50"], "no batch came after the warm-up"),
    ],
)
def test_wrong_benchmarks_are_told(
    configuration: Callable[..., dict[str, Any]],
    train: Callable[..., Ended],
    options: list[str],
    message: str,
) -> None:
    ended = train(configuration(num_epochs=1), "run", *options)
    assert ended.code == 2 and message in ended.err
