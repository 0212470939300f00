"""What an image that knows only rmldnn's contract (folders and out_test.txt) cannot do."""

from __future__ import annotations

from study.dataset import Dataset
from study.settings import Settings
from trainer.errors import InputError


def check_foreign(settings: Settings, dataset: Dataset) -> None:
    """It cannot choose on a part of a folder, nor read other masks than 0 and 255."""
    where = f"--docker-image {settings.docker_image}"
    if settings.select_on != "test" or dataset.test is None:
        raise InputError(
            where,
            "is a foreign image: it knows only folders, and no part of one",
            "--select-on test, with test/inputs and test/targets in the data",
        )
    if dataset.layout.masks_beside or dataset.masks.classes:
        found = "is a foreign image: it knows one mask of 0 and 255 for an image, in a folder apart"
        raise InputError(where, found, "train/inputs, train/targets, test/inputs, test/targets")
    if settings.metric != "accuracy":
        raise InputError("--metric", "a foreign image tells accuracy only", "--metric accuracy")
    if set(dataset.masks.values) != {0, 255}:
        values = ", ".join(map(str, sorted(dataset.masks.values)))
        found = f"is a foreign image: it divides masks by 255, and they hold {values}"
        raise InputError(where, found, "masks of 0 and 255")
