"""Numbers for the end of a study: scores of the images that count, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer import metrics
from trainer.metrics import ImageScore

RESAMPLES = 2000
PERMUTATIONS = 9999
ROUNDING = 1e-12
"""Two arrangements that differ by less are equal."""


FEWEST = 5
"""Images, or patients, that an interval needs: of two there are but three arrangements."""


def bootstrap_interval(
    summands: NDArray[np.float64],
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    names: Sequence[str] = (),
    patient_of: Mapping[str, str] | None = None,
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval (Efron 1979), seeded, of a number that depends on sums.

    `summands` (n, k) are those of each image or volume; `value` gives the numbers (r,) of sums
    (r, k), NaN where there is none. With `patient_of` (of their `names`) patients are drawn, all
    rows of one together. None where there are fewer than FEWEST of them.
    """
    units = _together(names or [""] * len(summands), patient_of)
    if len(units) < FEWEST:
        return None
    of_units = np.stack([summands[rows].sum(axis=0) for rows in units])
    generator = np.random.default_rng(0)
    sums = np.empty((RESAMPLES, summands.shape[1]))
    for number in range(RESAMPLES):
        drawn = generator.integers(len(units), size=len(units))
        sums[number] = np.bincount(drawn, minlength=len(units)) @ of_units
    with np.errstate(invalid="ignore", divide="ignore"):
        values = value(sums)
    low, high = np.percentile(values[~np.isnan(values)], [2.5, 97.5])
    return float(low), float(high)


def mean_interval(
    values: Sequence[float],
    names: Sequence[str] = (),
    patient_of: Mapping[str, str] | None = None,
) -> tuple[float, float] | None:
    """That of the mean of the values, one an image."""
    summands = np.array([(value, 1.0) for value in values]).reshape(-1, 2)
    return bootstrap_interval(summands, lambda sums: sums[:, 0] / sums[:, 1], names, patient_of)


def accuracy_interval(
    scores: Sequence[ImageScore], patient_of: Mapping[str, str] | None = None
) -> tuple[float, float] | None:
    """That of the accuracy of the images together."""
    rows = []
    for score in scores:
        counts = score.counts
        classes = [counts[0].others, counts[0]] if len(counts) == 1 else counts
        rows.append([n for c in classes for n in (c.tp, c.fp, c.fn)])

    def value(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        tp, fp, fn = np.moveaxis(sums.reshape(len(sums), -1, 3), 2, 0)
        whole = 2 * tp + fp + fn
        dice = np.where(whole > 0, 2 * tp / whole, 1.0)
        return np.asarray(dice.mean(axis=1))

    names = [score.name for score in scores]
    return bootstrap_interval(np.array(rows, np.float64), value, names, patient_of)


def _together(
    names: Sequence[str], patient_of: Mapping[str, str] | None
) -> list[NDArray[np.int64]]:
    """Indices of what is drawn together: of each patient, or of each by itself."""
    if not patient_of:
        return [np.array([index]) for index in range(len(names))]
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        found.setdefault(patient_of.get(name, name), []).append(index)
    return [np.array(indices) for indices in found.values()]


def accuracy(scores: Sequence[ImageScore]) -> float:
    """Accuracy of the images together."""
    return metrics.accuracy(metrics.total(scores))


def lesion_dice(scores: Sequence[ImageScore]) -> float | None:
    """Mean foreground Dice of the images with a lesion."""
    return metrics.mean([score.dice for score in scores if not score.empty])


def empty_correct(scores: Sequence[ImageScore]) -> float | None:
    """Share of the images without a lesion in which none was found."""
    return metrics.mean([float(score.false_pixels == 0) for score in scores if score.empty])


def told(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A number with its interval, three decimals."""
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


class Paired(NamedTuple):
    """A metric of two models on the same images; the interval (None: of fewer than FEWEST) and p
    are of b - a."""

    a: float
    b: float
    interval: tuple[float, float] | None
    p: float


def paired(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    metric: Callable[[NDArray[np.float64]], float],
    names: Sequence[str] = (),
    patient_of: Mapping[str, str] | None = None,
) -> Paired:
    """The difference of `metric` between two arrays with a row an image, in the same order. With
    `patient_of` (of the rows' `names`) all rows of a patient are drawn and exchanged together.

    The interval is a 95 % percentile bootstrap over images (Efron 1979). p is two-sided, of the
    paired permutation test: were there no difference, which model gave which of an image's two
    results would be chance, so they are exchanged at random (for a mean that is the sign-flip
    test). The observed arrangement counts as one of them (Phipson and Smyth 2010), so p is at
    least 1 / (PERMUTATIONS + 1). Seeded.
    """
    generator = np.random.default_rng(0)
    observed = metric(b) - metric(a)
    units = _together(names or [""] * len(a), patient_of)
    unit_of = np.zeros(len(a), np.int64)
    for number, rows in enumerate(units):
        unit_of[rows] = number
    draws = [generator.integers(len(units), size=len(units)) for _ in range(RESAMPLES)]
    drawn = [np.concatenate([units[unit] for unit in one]) for one in draws]
    differences = [metric(b[i]) - metric(a[i]) for i in drawn]
    low, high = np.percentile(differences, [2.5, 97.5])
    interval = (float(low), float(high)) if len(units) >= FEWEST else None
    shape = (len(a),) + (1,) * (a.ndim - 1)
    extreme = 1
    for _ in range(PERMUTATIONS):
        exchanged = generator.integers(2, size=len(units)).astype(bool)[unit_of].reshape(shape)
        difference = metric(np.where(exchanged, a, b)) - metric(np.where(exchanged, b, a))
        extreme += abs(difference) >= abs(observed) - ROUNDING
    p = extreme / (PERMUTATIONS + 1)
    return Paired(float(metric(a)), float(metric(b)), interval, p)
