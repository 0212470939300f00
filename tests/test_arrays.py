"""Arrays of .npy, .npz and .h5 files: found, paired, checked, read whole or in blocks."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.config import Config, Data, parse_config
from trainer.data import array_set
from trainer.data.array_set import ArraySet
from trainer.data.arrays import Block, list_arrays, paired, read_region
from trainer.data.order import batches_in_order, shuffled_batches
from trainer.data.samples import Samples, open_samples
from trainer.errors import InputError
from trainer.parts import Parts, open_parts
from trainer.tasks import Task, task_of

Array = NDArray[Any]


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def save_h5(path: Path, **datasets: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in datasets.items():
            file[name.replace("__", "/")] = array
    return path


def save_npy(path: Path, array: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def configured(inputs: Path, targets: Path | None, kind: str = "hdf5", **data: Any) -> Config:
    """Evaluation alone; nothing is loaded yet."""
    paths = {"test_input_path": str(inputs)} | (
        {"test_target_path": str(targets)} if targets else {}
    )
    content = {"data": {"type": kind, **paths, **data}, "checkpoints": {"load": "weights.pt"}}
    return parse_config({"neural_network": content})


def opened(
    config: Config,
    channels: int = 1,
    dimensions: int = 3,
    task: Task = "classes",
    outputs: int = 2,
) -> ArraySet:
    parts = open_parts(config)
    samples = open_samples(parts.evaluation, config.data, channels, dimensions, task, outputs)
    assert isinstance(samples, ArraySet)
    check: Samples = samples
    assert check.facts() is None and not check.own_size_comparable
    return samples


def test_a_file_of_one_dataset(tmp_path: Path) -> None:
    volume, labels = values(8, 6, 4), np.random.default_rng(1).integers(0, 3, (8, 6, 4), np.uint8)
    inputs = save_h5(tmp_path / "in.h5", input=volume)
    targets = save_h5(tmp_path / "out.h5", target=labels)
    samples = opened(configured(inputs, targets), outputs=3)
    assert samples.names == ["input"] and samples.shape == (1, 8, 6, 4)
    x, y = samples.batch(torch.tensor([0]))
    assert x.dtype == torch.float32 and y is not None and y.dtype == torch.float32
    np.testing.assert_array_equal(x[0, 0], volume)
    np.testing.assert_array_equal(y[0, 0], labels)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_channel_axis_is_added_where_there_is_none(tmp_path: Path, channels: int) -> None:
    shape = (5, 4) if channels == 1 else (2, 5, 4)
    save_npy(tmp_path / "in/nu.npy", values(*shape))
    save_npy(tmp_path / "out/nu.npy", values(1, 5, 4, seed=1))
    samples = opened(
        configured(tmp_path / "in", tmp_path / "out", "numpy"), channels, 2, "foreground", 1
    )
    x, y = samples.batch(torch.tensor([0]))
    assert x.shape == (1, channels, 5, 4) and y is not None and y.shape == (1, 1, 5, 4)
    assert samples.names == ["nu.npy"]


def test_folders_and_files_of_many_pair_by_name(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        save_npy(tmp_path / f"in/deep/{number}.npy", np.full((4, 4), number, np.float64))
        save_npy(tmp_path / f"out/deep/{number}.npy", np.full((4, 4), -number, np.int16))
    np.savez(tmp_path / "in/more.npz", a=np.full((4, 4), 20.0), b=np.full((4, 4), 21.0))
    np.savez(tmp_path / "out/more.npz", b=np.full((4, 4), -21), a=np.full((4, 4), -20))
    config = configured(tmp_path / "in", tmp_path / "out", "numpy")
    samples = opened(config, 1, 2, "foreground", 1)
    expected = ["deep/1.npy", "deep/10.npy", "deep/2.npy", "more.npz/a", "more.npz/b"]
    assert samples.names == expected
    x, y = samples.batch(torch.arange(5))
    assert y is not None and torch.equal(x, -y)
    assert x[:, 0, 0, 0].tolist() == [1, 10, 2, 20, 21]
    samples.preload(2)
    assert samples.cached
    again = samples.batch(torch.arange(5))
    assert torch.equal(again[0], x) and again[1] is not None and torch.equal(again[1], y)


def test_datasets_in_groups_and_in_a_folder_of_files(tmp_path: Path) -> None:
    save_h5(tmp_path / "in/a.h5", x=values(4, 4), deep__y=values(4, 4))
    save_h5(tmp_path / "in/b.h5", x=values(4, 4))
    assert [a.name for a in list_arrays(tmp_path / "in", "hdf5")] == [
        "a.h5/deep/y",
        "a.h5/x",
        "b.h5",
    ]
    assert [a.name for a in list_arrays(tmp_path / "in/a.h5", "hdf5")] == ["deep/y", "x"]


def test_pairs(tmp_path: Path) -> None:
    def arrays(folder: str, *names: str) -> Any:
        for name in names:
            save_npy(tmp_path / folder / f"{name}.npy", values(2, 2))
        return list_arrays(tmp_path / folder, "numpy")

    inputs = arrays("i", "a", "b")
    sorted_ones = paired(inputs, arrays("s", "x", "y"), "here")
    assert [(p.input.stem, p.target.stem) for p in sorted_ones if p.target] == [
        ("a", "x"),
        ("b", "y"),
    ]
    with pytest.raises(InputError, match="there are 2 inputs and 3 targets"):
        paired(inputs, arrays("t", "a", "b", "c"), "here")
    with pytest.raises(InputError, match="but not those of b"):
        paired(inputs, arrays("u", "a", "c"), "here")


def test_a_number_a_sample_is_a_label(tmp_path: Path) -> None:
    for number in range(3):
        save_npy(tmp_path / f"in/{number}.npy", values(4, 4))
    labels = save_npy(tmp_path / "labels.npy", np.array([2, 0, 1]))
    config = configured(tmp_path / "in", labels, "numpy")
    parts = open_parts(config)
    assert parts.target_shape == ()
    assert task_of(config.data, 3, 0, "nll", parts.target_shape) == "labels"
    samples = opened(config, 1, 2, "labels", 3)
    _, y = samples.batch(torch.tensor([2, 0]))
    assert y is not None and y.tolist() == [1, 2] and y.dtype == torch.int64
    save_npy(labels, np.array([2, 0.5, 1]))
    with pytest.raises(InputError, match=r"holds \[0\.5\] for 1\.npy"):
        opened(config, 1, 2, "labels", 3).batch(torch.tensor([1]))


def test_labels_of_arrays_from_their_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save_npy(tmp_path / name / "1.npy", values(4, 4))
    content = {
        "input_type": "numpy",
        "target_type": "labels",
        "test_input_path": str(tmp_path),
    }
    config = parse_config(
        {"neural_network": {"data": content, "checkpoints": {"load": "weights.pt"}}}
    )
    samples = opened(config, 1, 2, "labels", 2)
    assert samples.names == ["cat/1.npy", "dog/1.npy"] and samples.has_targets
    _, y = samples.batch(torch.arange(2))
    assert y is not None and y.tolist() == [0, 1]


SLICERS: list[dict[str, Any]] = [
    {"name": "thin", "sizes": [1, 4, 4]},
    {"sizes": [6, 1, 4], "transpose": True, "padding": [1, 0, 0]},
]


def test_blocks_of_several_slicers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = values(6, 5, 9)
    inputs = save_h5(tmp_path / "in.h5", input=volume)
    targets = save_h5(tmp_path / "out.h5", target=(volume > 0).astype(np.int8)[None])
    config = configured(inputs, targets, slicers=SLICERS)
    parts = open_parts(config)
    samples = opened(config, 1, 2)
    assert samples.groups == [6 * 2 * 3, 5 * 3] and len(samples) == 51
    assert samples.names[0] == "input/thin/000000" and samples.names[36] == "input/slices_2/000000"
    assert samples.shape == (1, 4, 4)
    x, y = samples.batch(torch.tensor([0, 5, 35]))
    assert x.shape == (3, 1, 4, 4) and y is not None and y.shape == x.shape
    np.testing.assert_array_equal(x[0, 0], volume[0, :4, :4])
    assert x[1, 0, 0, 0] == volume[0, 4, 8] and x[1].count_nonzero() == 1, "a remainder, padded"
    x, y = samples.batch(torch.tensor([37]))
    assert x.shape == (1, 1, 4, 8) and y is not None
    np.testing.assert_array_equal(x[0, 0, :, 1:7], volume[:, 0, 4:8].T)
    assert (x[..., 0] == 0).all() and torch.equal(y > 0, x > 0)
    assert y[..., 0].isnan().all() and not y[..., 1:7].isnan().any(), "padding does not count"

    batches = batches_in_order(samples.groups, 20)
    assert [len(batch) for batch in batches] == [20, 16, 15]
    for indices in batches:
        samples.batch(indices)
    kept = opened(config, 1, 2)
    kept.preload(1)
    assert kept.cached
    for indices in batches:
        for one, other in zip(kept.batch(indices), samples.batch(indices), strict=True):
            assert one is not None and other is not None
            assert torch.equal(one.nan_to_num(-9), other.nan_to_num(-9))
    monkeypatch.setattr(array_set, "free_memory_bytes", lambda: 2 * volume.nbytes)
    samples.preload(1)
    assert not samples.cached
    assert [line for line in parts.notes if "Num samples" in line] == [
        f"      Num samples : {count}" for count in (36, 36, 15, 15)
    ]


def test_an_epoch_mixes_the_batches_of_slicers_but_no_batch() -> None:
    groups = [36, 15]
    epochs = [shuffled_batches(0, epoch, groups, 10) for epoch in (1, 2)]
    for batches in epochs:
        assert sorted(torch.cat(batches).tolist()) == list(range(51))
        assert all(len({int(index) >= 36 for index in batch}) == 1 for batch in batches)
        assert sorted(map(len, batches)) == [5, 6, 10, 10, 10, 10]
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    kinds = {tuple(bool(b[0] >= 36) for b in shuffled_batches(0, e, groups, 10)) for e in range(9)}
    assert len(kinds) > 3, "one slicer's batches do not always come first"


def broken(name: str, folder: Path) -> Config:
    """A configuration with one fault."""
    volume = values(4, 4, 4)
    inputs, targets = folder / "in.h5", folder / "out.h5"
    save_h5(targets, target=(volume > 0).astype(np.uint8))
    save_h5(inputs, input=volume)
    npy, npy_targets = folder / "n/a.npy", folder / "m/a.npy"
    save_npy(npy, volume)
    save_npy(npy_targets, volume)
    slicers = [{"sizes": [8, 4, 4], "discard_remainders": True}]
    if name == "nan":
        save_h5(inputs, input=np.where(volume > 1, np.nan, volume))
    elif name == "complex":
        save_h5(inputs, input=volume.astype(np.complex64))
    elif name == "text":
        save_h5(inputs, input=np.array([b"a", b"b"]))
    elif name == "empty dataset":
        save_h5(inputs, input=np.zeros((0, 4, 4)))
    elif name == "no dataset":
        save_h5(inputs)
    elif name == "rank":
        save_h5(inputs, input=volume[0])
    elif name == "size":
        save_h5(targets, target=np.zeros((4, 4, 5)))
    elif name == "channels":
        save_h5(inputs, input=values(3, 4, 4, 4))
    elif name == "target channels":
        save_h5(targets, target=values(3, 4, 4, 4))
    elif name == "count":
        save_h5(targets, a=volume, b=volume)
    elif name == "truncated h5":
        inputs.write_bytes(inputs.read_bytes()[:-40])
    elif name == "not h5":
        inputs.write_text("hello")
    elif name == "block":
        return configured(inputs, targets, slicers=slicers)
    elif name == "rank of slicer":
        return configured(inputs, targets, slicers=[{"sizes": [2]}])
    elif name == "flat blocks":
        return configured(inputs, targets, slicers=[{"sizes": [1, 2, 2]}])
    elif name == "missing":
        inputs.unlink()
    elif name == "other file":
        (npy.parent / "readme.txt").write_text("hello")
        return configured(npy.parent, npy_targets.parent, "numpy")
    elif name == "objects":
        np.save(npy, np.array([{"a": 1}, None], object), allow_pickle=True)
        return configured(npy, npy_targets, "numpy")
    elif name == "truncated npy":
        npy.write_bytes(npy.read_bytes()[:-9])
        return configured(npy, npy_targets, "numpy")
    elif name == "not npy":
        npy.write_bytes(b"PK")
        return configured(npy, npy_targets, "numpy")
    elif name == "truncated npz":
        np.savez(folder / "n/a.npz", a=volume)
        (folder / "n/b.npz").write_bytes((folder / "n/a.npz").read_bytes()[:-60])
        return configured(folder / "n/b.npz", npy_targets, "numpy")
    elif name == "sizes":
        save_npy(folder / "n/b.npy", values(4, 4, 6))
        save_npy(folder / "m/b.npy", values(4, 4, 6))
        return configured(npy.parent, npy_targets.parent, "numpy")
    return configured(inputs, targets)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nan", r"in\.h5, input: holds values that are not finite"),
        ("complex", r"in\.h5, input: holds complex numbers"),
        ("text", r"in\.h5, input: holds values of type"),
        ("empty dataset", r"in\.h5, input: is empty"),
        ("no dataset", r"in\.h5: holds no array"),
        ("rank", r"in\.h5, input: has the shape \(4, 4\)"),
        ("size", r"out\.h5, target: has the shape \(4, 4, 5\), its input \(4, 4, 4\)"),
        ("channels", r"in\.h5, input: has 3 channels, the network takes 1"),
        ("target channels", r"out\.h5, target: has 3 channels for a network of 2 outputs"),
        ("count", "there are 1 inputs and 2 targets"),
        ("truncated h5", r"in\.h5: cannot be read"),
        ("not h5", r"in\.h5: cannot be read"),
        ("block", r"in\.h5, input: is 4 x 4 x 4 voxels, no block of 8 x 4 x 4"),
        ("rank of slicer", r"in\.h5, input: has the shape \(4, 4, 4\)"),
        ("flat blocks", "the network takes 3 axes"),
        ("missing", r"in\.h5: there is no such file"),
        ("other file", r"readme\.txt: is not a file of arrays"),
        ("objects", r"a\.npy: holds Python objects"),
        ("truncated npy", r"a\.npy: cannot be read"),
        ("not npy", r"a\.npy: cannot be read"),
        ("truncated npz", r"b\.npz: cannot be read"),
        ("sizes", r"b\.npy: has the shape \(4, 4, 6\), a\.npy has \(4, 4, 4\)"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, name: str, found: str) -> None:
    config = broken(name, tmp_path)
    with pytest.raises(InputError, match=found) as caught:
        opened(config).batch(torch.tensor([0]))
    assert "\n" not in caught.value.found


def test_small_types_stay_small_in_memory(tmp_path: Path) -> None:
    for dtype, kept in (("u1", "uint8"), (">i2", "int16"), ("f8", "float32"), ("i8", "float32")):
        path = save_npy(tmp_path / "a.npy", np.array([[1, 2], [3, 4]], dtype))
        (array,) = list_arrays(path, "numpy")
        found = read_region(array, (slice(1, 2), slice(0, 2)))
        assert found.dtype == kept and found.tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("outputs", "spatial", "target", "task"),
    [
        (1, 3, (8, 8, 8), "foreground"),
        (4, 3, (8, 8, 8), "classes"),
        (4, 3, (1, 8, 8, 8), "classes"),
        (4, 3, (4, 8, 8, 8), "channels"),
        (1, 3, None, "foreground"),
        (4, 3, None, "classes"),
        (4, 0, None, "labels"),
        (4, 3, (), "labels"),
    ],
)
def test_the_task_follows_from_the_targets(
    outputs: int, spatial: int, target: Any, task: Task
) -> None:
    assert task_of(Data(type="hdf5"), outputs, spatial, "nll", target) == task


def test_flat_blocks_of_a_volume_are_no_channels() -> None:
    data = Data.model_validate({"type": "numpy", "slicers": [{"sizes": [1, 32, 32]}]})
    assert task_of(data, 2, 2, "nll", (64, 64, 64)) == "classes"
    assert task_of(data, 2, 2, "mse", (2, 64, 64, 64)) == "channels"


@pytest.mark.parametrize(
    ("content", "outputs", "loss", "task"),
    [
        ({}, 1, "bce", "foreground"),
        ({}, 3, "bce", "channels"),
        ({}, 3, "mse", "channels"),
        ({}, 3, "nll", "classes"),
        ({"target_grayscale": True}, 3, "bce", "classes"),
        ({"target_is_mask": True}, 3, "bce", "classes"),
        ({"split": "split.json"}, 3, "bce", "classes"),
        ({}, 4, "bce", "classes"),
        ({"target_type": "labels"}, 10, "nll", "labels"),
        ({"type": "mnist"}, 10, "nll", "labels"),
    ],
)
def test_the_task_of_images(content: Any, outputs: int, loss: str, task: Task) -> None:
    assert task_of(Data.model_validate(content), outputs, 2, loss) == task


def test_many_blocks_take_little_memory(tmp_path: Path) -> None:
    inputs = save_h5(tmp_path / "in.h5", input=np.zeros((200, 64, 64), np.uint8))
    parts: Parts = open_parts(configured(inputs, None, slicers=[{"sizes": [1, 8, 8]}]))
    assert len(parts.evaluation) == 200 * 64
    block = parts.evaluation[77]
    assert isinstance(block, Block) and not hasattr(block, "__dict__")
    assert json.dumps(block.number) == "77"


def test_inputs_and_targets_in_one_file(tmp_path: Path) -> None:
    path = save_h5(tmp_path / "both.h5", input=values(4, 4), target=np.ones((4, 4)))
    samples = opened(configured(path, path), 1, 2)
    x, y = samples.batch(torch.arange(1))
    assert len(samples) == 1 and y is not None and (y == 1).all()
    np.testing.assert_array_equal(x[0, 0], values(4, 4))


def test_an_array_may_be_its_own_target(tmp_path: Path) -> None:
    path = save_npy(tmp_path / "nu.npy", values(1, 4, 4))
    samples = opened(configured(path, path, "numpy"), 1, 2, "foreground", 1)
    x, y = samples.batch(torch.arange(1))
    assert y is not None and torch.equal(x, y) and samples.names == ["nu.npy"]


def test_slicers_are_of_as_many_axes(tmp_path: Path) -> None:
    path = save_h5(tmp_path / "v.h5", input=values(4, 4, 4))
    slicers = [{"sizes": [4, 4, 4]}, {"sizes": [4, 4]}]
    with pytest.raises(InputError, match="2 sizes, the first slicer has 3"):
        open_parts(configured(path, None, slicers=slicers))


def test_the_log_tells_of_the_first_arrays_only(tmp_path: Path) -> None:
    for number in range(12):
        save_npy(tmp_path / f"{number:02d}.npy", values(4, 4))
    notes = open_parts(configured(tmp_path, None, "numpy", slicers=[{"sizes": [2, 2]}])).notes
    assert len([line for line in notes if line.startswith("Slicing dataset")]) == 8
    assert notes[-1] == "   and 4 more arrays by slicer slices_1"


def test_the_published_batches_of_two_slicers() -> None:
    """256 and 64 samples in batches of 20: 13 and 4."""
    assert len(batches_in_order([256, 64], 20)) == 17


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("value", "found"), [(2.0, "holds 2"), (-1.0, "holds -1"), (0.5, r"holds 0\.5")]
)
def test_numbers_that_are_no_classes_of_the_network(
    tmp_path: Path, value: float, found: str, cached: bool
) -> None:
    inputs = save_npy(tmp_path / "in.npy", values(2, 4, 4))
    numbers = np.ones((2, 4, 4), np.float32)
    numbers[1, 2, 3] = value
    targets = save_npy(tmp_path / "out.npy", numbers)
    config = configured(inputs, targets, "numpy")
    samples = opened(config)
    with pytest.raises(InputError, match=found):
        if cached:
            samples.preload(1)
        samples.batch(torch.arange(1))
    parts = open_parts(config)
    ignoring = open_samples(parts.evaluation, config.data, 1, 3, "classes", 2, ignored=int(value))
    if value == int(value):
        _, y = ignoring.batch(torch.arange(1))
        assert y is not None and y.min() == min(value, 1)


@pytest.mark.parametrize("kind", ["numpy", "hdf5"])
def test_a_file_with_a_number_is_a_label(tmp_path: Path, kind: str) -> None:
    for number in range(3):
        name = f"{number}.npy" if kind == "numpy" else f"{number}.h5"
        for part, array in (("in", values(4, 4)), ("out", np.array(2 - number))):
            save_npy(tmp_path / part / name, array) if kind == "numpy" else save_h5(
                tmp_path / part / name, x=array
            )
    config = configured(tmp_path / "in", tmp_path / "out", kind)
    parts = open_parts(config)
    assert task_of(config.data, 3, 0, "nll", parts.target_shape) == "labels"
    samples = opened(config, 1, 2, "labels", 3)
    for preloaded in (False, True):
        if preloaded:
            samples.preload(1)
        _, y = samples.batch(torch.tensor([0, 2]))
        assert y is not None and y.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (["a", "a/b"], "x.npz/a, which is an array itself"),
        (["a", "a.npy"], "has the name of another array"),
        (["../a"], "has a name that no dataset can have"),
    ],
)
def test_names_that_no_file_of_predictions_can_have(
    tmp_path: Path, keys: list[str], found: str
) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for key in keys:
            with archive.open(key, "w") as entry:
                np.lib.format.write_array(entry, values(3, 4))
    with pytest.raises(InputError, match=found):
        list_arrays(tmp_path / "x.npz", "numpy")


def test_a_label_beyond_the_classes_is_told(tmp_path: Path) -> None:
    inputs = save_h5(tmp_path / "in.h5", a=values(4, 4), b=values(4, 4, seed=1))
    targets = save_h5(tmp_path / "out.h5", a=np.array([1]), b=np.array([3]))
    samples = opened(configured(inputs, targets), 1, 2, task="labels", outputs=3)
    with pytest.raises(InputError, match="holds 3 for b"):
        samples.batch(torch.arange(2))


def test_a_dataset_that_is_kept_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (8, 8), "u1", external=[(tmp_path / "secret", 0, 64)])
    with pytest.raises(InputError, match="keeps its values in other files"):
        list_arrays(tmp_path / "x.h5", "hdf5")


def test_a_packed_volume_larger_than_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "x.npz", a=values(8, 8))
    config = configured(tmp_path / "x.npz", None, "numpy", slicers=[{"sizes": [4, 4]}])
    samples = opened(config, 1, 2)
    monkeypatch.setattr(array_set, "free_memory_bytes", lambda: 300)
    with pytest.raises(InputError, match="too large for the memory"):
        samples.preload(1)
