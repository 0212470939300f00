"""Labels: classes from the names of folders, with tags, over both parts; IDX files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from trainer.config import Config, parse_config
from trainer.data.cache import ImageSet
from trainer.data.folders import Pair
from trainer.data.samples import open_samples
from trainer.errors import InputError
from trainer.parts import Parts, open_parts


def save(folder: Path, *names: str) -> None:
    """Grey images whose brightness is the number of the name."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5), number, np.uint8)).save(path)


def configured(training: Path | None, test: Path | None, **data: Any) -> Config:
    content: dict[str, Any] = {"input_type": "images", "target_type": "labels", **data}
    content |= {"input_path": str(training)} if training else {}
    content |= {"test_input_path": str(test)} if test else {}
    rest: dict[str, Any] = {"checkpoints": {"load": "weights.pt"}}
    if training:
        rest = {"layers": [], "optimizer": {"type": "sgd"}, "loss": {"function": "nll"}}
    return parse_config({"neural_network": {"data": content, **rest}})


def labels(parts: Parts, training: bool = False) -> dict[str, int | None]:
    items = parts.training if training else parts.evaluation
    return {item.name: item.label for item in items if isinstance(item, Pair)}


def test_the_class_is_the_folder_below_the_input_folder(tmp_path: Path) -> None:
    save(tmp_path / "train", "dog/1.png", "cat/deep/2.png", "cat/1.png", "cat/1.jpg")
    save(tmp_path / "test", "cat/7.png", "dog/7.png")
    parts = open_parts(configured(tmp_path / "train", tmp_path / "test"))
    assert parts.class_names == ("cat", "dog")
    expected = {"cat/1.jpg": 0, "cat/1.png": 0, "cat/deep/2.png": 0, "dog/1.png": 1}
    assert labels(parts, training=True) == expected
    assert labels(parts) == {"cat/7.png": 0, "dog/7.png": 1}
    assert parts.notes == ("Number of class labels: 2",)


def test_names_are_sorted_as_text(tmp_path: Path) -> None:
    save(tmp_path / "train", *(f"{number}/a.png" for number in (10, 9, 1)), "B/a.png", "a/a.png")
    parts = open_parts(configured(tmp_path / "train", None))
    assert parts.class_names == ("1", "10", "9", "B", "a")


def test_the_tag_is_a_part_of_the_path(tmp_path: Path) -> None:
    """As in the published smoke test: the class stands below the tag, wherever that is."""
    root = tmp_path / "digits"
    save(root / "more", "training/0/a.png", "training/1/deep/b.png")
    save(root, "testing/0/c.png", "testing/1/d.png")
    tags = {"training_tag": "training", "test_tag": "testing"}
    for inputs, test in (
        (root / "more/training", root / "testing"),
        (root / "more", root / "testing"),
    ):
        parts = open_parts(configured(inputs, test, **tags))
        assert list(labels(parts, training=True).values()) == [0, 1]
        assert labels(parts) == {"0/c.png": 0, "1/d.png": 1}
        assert parts.class_names == ("0", "1")
    other = configured(root / "more", root / "testing", training_tag="training", testing_tag="x")
    with pytest.raises(InputError, match="no folder 'x' with a folder of a class below it"):
        open_parts(other)


def test_a_class_that_a_part_lacks_is_told_and_shifts_no_number(tmp_path: Path) -> None:
    save(tmp_path / "train", "ant/1.png", "bee/1.png", "cow/1.png")
    save(tmp_path / "test", "ant/1.png", "beee/1.png", "cow/1.png")
    parts = open_parts(configured(tmp_path / "train", tmp_path / "test"))
    assert parts.class_names == ("ant", "bee", "beee", "cow")
    assert labels(parts) == {"ant/1.png": 0, "beee/1.png": 2, "cow/1.png": 3}
    assert parts.notes == (
        "Number of class labels: 4",
        "WARNING: no training image has the class 'beee'; did you mean 'bee'?",
        "WARNING: no test image has the class 'bee'; did you mean 'beee'?",
    )


def test_an_empty_folder_is_a_class(tmp_path: Path) -> None:
    save(tmp_path / "train", "ant/1.png", "cow/1.png")
    (tmp_path / "train/bee").mkdir()
    (tmp_path / "train/.hidden").mkdir()
    parts = open_parts(configured(tmp_path / "train", None))
    assert parts.class_names == ("ant", "bee", "cow")
    assert "WARNING: no training image has the class 'bee'" in parts.notes


def test_an_evaluation_alone_numbers_as_the_checkpoint_does(tmp_path: Path) -> None:
    save(tmp_path / "test", "bee/1.png", "dog/1.png")
    config = configured(None, tmp_path / "test")
    assert labels(open_parts(config)) == {"bee/1.png": 0, "dog/1.png": 1}
    names = ("ant", "bee", "cow", "dog")
    parts = open_parts(config, names)
    assert labels(parts) == {"bee/1.png": 1, "dog/1.png": 3} and parts.class_names == names
    with pytest.raises(InputError, match="'bee'; did you mean 'bees'"):
        open_parts(config, ("bees", "dog"))


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["a.png", "cat/b.png"], r"a\.png: lies in no folder of a class"),
        (["cat/b.png"], "have one class, 'cat'"),
        ([], "there is no such folder"),
    ],
)
def test_folders_without_classes(tmp_path: Path, files: list[str], found: str) -> None:
    save(tmp_path / "train", *files)
    with pytest.raises(InputError, match=found):
        open_parts(configured(tmp_path / "train", None))


@pytest.mark.parametrize("cached", [True, False])
def test_a_batch_of_labels(tmp_path: Path, cached: bool) -> None:
    save(tmp_path / "train", "cat/0.png", "dog/1.png", "dog/2.png")
    config = configured(tmp_path / "train", None, transforms=[{"resize": [4, 8]}])
    parts = open_parts(config)
    samples = open_samples(parts.training, config.data, 1, 2, "labels", 2)
    assert samples.has_targets and not samples.own_size_comparable
    assert samples.shape == (1, 8, 4) and samples.groups == [3]
    if cached:
        samples.preload(1)
    x, y = samples.batch(torch.tensor([2, 0]))
    assert x.shape == (2, 1, 8, 4) and x[:, 0, 0, 0].tolist() == [2, 0]
    assert y is not None and y.tolist() == [1, 0] and y.dtype == torch.int64


def idx(path: Path, array: NDArray[np.uint8], zipped: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    content = head + array.tobytes()
    path.write_bytes(gzip.compress(content) if zipped else content)


def digits(folder: Path, part: str, count: int, zipped: bool = False) -> NDArray[np.uint8]:
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28)).astype(np.uint8)
    end = ".gz" if zipped else ""
    idx(folder / f"{part}-images-idx3-ubyte{end}", images, zipped)
    idx(folder / f"{part}-labels-idx1-ubyte{end}", np.arange(count, dtype=np.uint8) % 10, zipped)
    return images


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    images = digits(tmp_path, "train", 13, zipped)
    others = digits(tmp_path, "t10k", 4, zipped)
    content = {"input_type": "mnist", "target_type": "mnist"}
    config = configured(tmp_path, tmp_path, **content)
    parts = open_parts(config)
    assert parts.class_names == tuple("0123456789")
    assert [item.name for item in parts.training[-2:]] == ["00011", "00012"]
    for items, expected in ((parts.training, images), (parts.evaluation, others)):
        samples = open_samples(items, config.data, 1, 2, "labels", 10)
        samples.preload(1)
        x, y = samples.batch(torch.tensor([3, 1]))
        assert y is not None and y.tolist() == [3, 1]
        np.testing.assert_array_equal(x[:, 0], expected[[3, 1]])
    assert samples.shape == (1, 28, 28)


def test_an_idx_file_without_labels_is_predicted_only(tmp_path: Path) -> None:
    idx(tmp_path / "some-images-idx3-ubyte", np.zeros((3, 8, 8), np.uint8))
    config = configured(None, tmp_path / "some-images-idx3-ubyte", input_type="mnist")
    parts = open_parts(config)
    samples = open_samples(parts.evaluation, config.data, 1, 2, "labels", 10)
    assert not samples.has_targets and samples.batch(torch.arange(3))[1] is None


def test_idx_files_that_are_broken(tmp_path: Path) -> None:
    digits(tmp_path, "train", 4)
    config = configured(tmp_path, None, input_type="mnist")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="has no labels beside it"):
        open_parts(config)
    idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(5, np.uint8))
    with pytest.raises(InputError, match=r"has labels of shape \(5,\)"):
        open_parts(config)
    for number, (content, found) in enumerate(
        [
            (b"\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x02abc", "holds 3 values"),
            (b"hello", "is no IDX file"),
            (b"\x1f\x8bhello", "cannot be read"),
        ]
    ):
        path = tmp_path / f"broken{number}-images-idx3-ubyte"
        path.write_bytes(content)
        with pytest.raises(InputError, match=found):
            open_parts(configured(path, None, input_type="mnist"))
    with pytest.raises(InputError, match="no file of training images"):
        (tmp_path / "empty").mkdir()
        open_parts(configured(tmp_path / "empty", None, input_type="mnist"))


def test_an_image_that_is_its_own_target_is_kept_once(tmp_path: Path) -> None:
    save(tmp_path, "a.png", "b.png")
    pairs = [Pair(tmp_path / name, (tmp_path / name,), name) for name in ("a.png", "b.png")]
    images = ImageSet(pairs, 3, None, None, None, "channels", 3)
    read = images.batch(torch.arange(2))
    images.preload(1)
    x, y = images.batch(torch.arange(2))
    assert images._inputs is images._targets
    assert y is not None and torch.equal(x, y) and torch.equal(x, read[0])
