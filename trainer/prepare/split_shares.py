"""Cases into train, validation and test, by patient."""

from __future__ import annotations

import random
from collections.abc import Sequence

from trainer.errors import InputError

PARTS = ("train", "validation", "test")
TOLERANCE = 1e-6


def read_shares(text: str, option: str = "--split") -> tuple[float, ...]:
    """Three shares from `0.7,0.15,0.15`, that of training above 0, together 1 to a millionth."""
    accepted = "three shares like 0.7,0.15,0.15, together 1"
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(option, f"is '{text}'", accepted) from None
    if len(shares) != 3 or not all(0 <= share <= 1 for share in shares) or not shares[0]:
        raise InputError(option, f"is '{text}'", accepted)
    if abs(sum(shares) - 1) > TOLERANCE:
        raise InputError(option, f"{text} add up to {sum(shares):g}", accepted)
    return shares


def split_by_patient(
    patients: Sequence[str], shares: Sequence[float], seed: int | None, option: str = "--split"
) -> list[str]:
    """The part of each case. The patients are shuffled with `seed`, or stay in the order of their
    first case where it is None; the cut points are int(cumulated share * patients).

    Raises InputError where a part that has a share gets no patient.
    """
    order = list(dict.fromkeys(patients))
    if seed is not None:
        random.Random(f"split {seed}").shuffle(order)
    count = len(order)
    # 1e-9: 0.7 + 0.15 is a little less than 0.85 in floating point.
    first, second = (int(sum(shares[:n]) * count + 1e-9) for n in (1, 2))
    sizes = (first, second - first, count - second)
    for part, share, size in zip(PARTS, shares, sizes, strict=True):
        if share > 0 and size == 0:
            told = " / ".join(map(str, sizes))
            found = f"{','.join(f'{share:g}' for share in shares)} of {count} patients is {told}"
            raise InputError(option, found, f"a patient for {part}", "other shares, or more cases")
    part_of = {
        patient: PARTS[0] if n < first else PARTS[1] if n < second else PARTS[2]
        for n, patient in enumerate(order)
    }
    return [part_of[patient] for patient in patients]
