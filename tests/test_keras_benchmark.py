"""The benchmark compares the same network three times."""

from __future__ import annotations

import sys

import pytest
import torch

from tests import keras_reference
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import networks

pytestmark = pytest.mark.slow


def test_the_page_compares_equal_networks_in_turns() -> None:
    assert keras_reference.keras
    page = networks.page(size=32, batch=2, count=1)
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows[1:]] == ["by hand in torch", "Keras on torch"]
    for _, _, other, ours, ratio, *_ in rows[1:]:
        assert float(ratio) == pytest.approx(float(other) / float(ours), rel=0.2)


def test_networks_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    real = networks.by_hand

    def wrong(ours: networks.KerasNetwork) -> networks.ByHand:
        module = real(ours)
        with torch.no_grad():
            module.end.weight.mul_(1.1)
        return module

    monkeypatch.setattr(networks, "by_hand", wrong)
    with pytest.raises(SystemExit, match="not the same"):
        networks.page(size=32, batch=2, count=1)
