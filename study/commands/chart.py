"""Curves drawn with characters, for a terminal of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 64, 12
SEVERAL = "#"
"""Stands where two curves meet."""

Curve = Sequence[tuple[float, float]]


def chart(curves: Mapping[str, Curve], x_name: str, marks: Sequence[str]) -> list[str]:
    """Lines of text: each curve of (x, y) points with its mark, and its name below.

    Axes reach from the least to the greatest value. Nothing for curves without points.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return []
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    rows = [[" "] * WIDTH for _ in range(HEIGHT)]
    for mark, curve in zip(marks, curves.values(), strict=True):
        for x, y in curve:
            column = _place(x, left, right, WIDTH)
            row = HEIGHT - 1 - _place(y, low, high, HEIGHT)
            rows[row][column] = SEVERAL if rows[row][column] not in (" ", mark) else mark
    names = {0: f"{high:.3g}", HEIGHT - 1: f"{low:.3g}"}
    margin = max(map(len, names.values()))
    lines = [f"{names.get(n, ''):>{margin}} |{''.join(row)}".rstrip() for n, row in enumerate(rows)]
    ends = f"{left:.3g}", f"{right:.3g} {x_name}"
    between = max(1, WIDTH - len(ends[0]) - len(ends[1]))
    legend = ", ".join(f"{mark} {name}" for mark, name in zip(marks, curves, strict=True))
    return [
        *lines,
        f"{'':>{margin}} +{'-' * WIDTH}",
        f"{'':>{margin}}  {ends[0]}{' ' * between}{ends[1]}",
        f"{'':>{margin}}  {legend}",
    ]


def _place(value: float, low: float, high: float, cells: int) -> int:
    return round((value - low) / (high - low) * (cells - 1)) if high > low else 0
