"""Labels files: what they say, what masks they read, and what is told of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.labels import MaskClass, class_indices, read_labels, written
from trainer.data.masks import Masks, read_masks
from trainer.errors import InputError

INDICES = np.array([[0, 1, 2, 2], [0, 0, 1, 2]], np.uint8)


def labels(tmp_path: Path, content: Any) -> list[MaskClass]:
    (tmp_path / "labels.json").write_text(json.dumps(content))
    return read_labels(tmp_path / "labels.json")


VALUES = {"background": 0, "cyst": [85, 86], "tumour": 255}
COLOURS = {"background": "#000000", "cyst": "#FF0000", "tumour": ["#00ff00", "#00c800"]}


@pytest.mark.parametrize("content", [VALUES, COLOURS], ids=["values", "colours"])
@pytest.mark.parametrize("form", ["L", "RGB", "RGBA", "P"])
def test_what_is_written_is_read_again(tmp_path: Path, content: Any, form: str) -> None:
    classes = labels(tmp_path, content)
    assert [one.name for one in classes] == list(content)
    image = written(INDICES, classes)
    if content is COLOURS:
        image = image if form == "P" else image.convert("RGBA" if form == "RGBA" else "RGB")
    elif form != "P":
        image = image.convert(form)
    image.save(tmp_path / "mask.png")
    read = read_masks([tmp_path / "mask.png"], Masks(classes=classes))
    np.testing.assert_array_equal(read, INDICES)


def test_a_second_value_of_a_class(tmp_path: Path) -> None:
    classes = labels(tmp_path, VALUES)
    image = Image.fromarray(np.array([[86, 85, 0]], np.uint8))
    assert class_indices(image, classes, "m").tolist() == [[1, 1, 0]]


def test_a_palette_is_read_by_index_for_values_and_by_colour_for_colours(tmp_path: Path) -> None:
    image = Image.fromarray(INDICES, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    by_value = labels(tmp_path, {"background": 0, "a": 1, "b": 2})
    assert class_indices(image, by_value, "m").tolist() == INDICES.tolist()
    by_colour = labels(tmp_path, {"background": "#000000", "b": "#00ff00", "a": "#ff0000"})
    assert class_indices(image, by_colour, "m").tolist() == [[0, 2, 1, 1], [0, 0, 2, 1]]


def test_two_classes_are_background_and_foreground(tmp_path: Path) -> None:
    masks = Masks(classes=labels(tmp_path, {"nothing": 7, "lesion": [9, 200]}))
    assert (masks.outputs, masks.names) == (1, ["nothing", "lesion"])
    Image.fromarray(np.array([[7, 9, 200]], np.uint8)).save(tmp_path / "m.png")
    assert read_masks([tmp_path / "m.png"], masks).tolist() == [[0, 255, 255]]


def test_masks_of_several_classes_are_united(tmp_path: Path) -> None:
    masks = Masks(classes=labels(tmp_path, VALUES))
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    Image.fromarray(np.array([[85, 85, 0, 0]], np.uint8)).save(files[0])
    Image.fromarray(np.array([[0, 255, 255, 0]], np.uint8)).save(files[1])
    assert read_masks(files, masks).tolist() == [[1, 2, 2, 0]]
    assert read_masks(files, masks, (2, 1)).shape == (1, 2)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "does not name 2 to 250 classes"),
        ({"a": 1}, "does not name 2 to 250 classes"),
        ({"a": 0, "b": 256}, "256 is no value and no colour"),
        ({"a": 0, "b": "red"}, "'red' is no value and no colour"),
        ({"a": 0, "b": True}, "True is no value and no colour"),
        ({"a": 0, "b": []}, "the list is empty"),
        ({"a": 0, "b": [1, 0]}, "0 is a already"),
        ({"a": 0, "b": "#ffffff"}, "mixes values and colours"),
        ({"a": 0, " ": 1}, "a class has no name"),
        ({"a": 0, "b\x1b[2J": 1}, "a class has no name that can be printed"),
        ({"disc": 85, "background": 0}, "the background is not the first class"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        labels(tmp_path, content)
    assert told in str(caught.value) and "labels.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [(VALUES, "17 (2 pixels), 18 (1 pixels)"), (COLOURS, "#111111 (2 pixels), #121212 (1 pixels)")],
)
def test_what_no_class_names_is_told(tmp_path: Path, content: Any, told: str) -> None:
    image = Image.fromarray(np.array([[0, 17, 17, 18]], np.uint8))
    with pytest.raises(InputError) as caught:
        class_indices(image, labels(tmp_path, content), "mask_3.png")
    assert f"mask_3.png: holds what no class names: {told}" in str(caught.value)
    assert "cyst: " in caught.value.accepted


def test_values_do_not_merge_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8))
    with pytest.raises(InputError, match="has colours, and --labels gives values"):
        class_indices(image, labels(tmp_path, {"background": 0, "disc": 255}), "m.png")
