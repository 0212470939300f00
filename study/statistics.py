"""Numbers for the end of a study: scores of the images that count, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from trainer import metrics
from trainer.metrics import ImageScore

RESAMPLES = 2000


def bootstrap_interval(
    scores: Sequence[ImageScore], metric: Callable[[Sequence[ImageScore]], float | None]
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of `metric` over images (Efron 1979), seeded.

    None where there are fewer than two images, or the metric has no value.
    """
    if len(scores) < 2 or metric(scores) is None:
        return None
    generator = np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(scores), size=len(scores))
        value = metric([scores[i] for i in drawn])
        if value is not None:
            values.append(value)
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


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
