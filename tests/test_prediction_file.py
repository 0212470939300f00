"""Predictions: names, shapes and values in the file, volumes put together, and a full disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.test_arrays import configured, opened, save_h5, values
from trainer.cases import open_predictions
from trainer.config import Config, Data
from trainer.data.array_set import ArraySet
from trainer.data.cache import ImageSet
from trainer.data.folders import Pair
from trainer.data.masks import Masks
from trainer.data.order import batches_in_order
from trainer.errors import InputError
from trainer.prediction_file import open_sink
from trainer.tasks import Task

Net = Callable[[torch.Tensor], torch.Tensor]


def images(*names: str) -> ImageSet:
    return ImageSet([Pair(Path("inputs") / name, (), name) for name in names], 3)


def written(folder: Path, *outputs: NDArray[np.float32], names: tuple[str, ...] = ()) -> Path:
    names = names or tuple(f"{number}.png" for number in range(len(outputs)))
    data = Data(test_input_path="inputs", test_output_path=str(folder))
    with open_sink(data, 3, images(*names), Masks(threshold=0.5)) as sink:
        assert sink is not None
        for number, output in enumerate(outputs):
            sink.write(number, output)
        assert not (folder / "output_3.h5").exists(), "not there until it is whole"
    assert sink.paths == [folder / "output_3.h5"]
    return folder / "output_3.h5"


@pytest.mark.parametrize("shape", [(10,), (1, 8, 6), (3, 8, 6), (1, 4, 5, 6)])
def test_a_dataset_a_sample(tmp_path: Path, shape: tuple[int, ...]) -> None:
    one, other = values(*shape), values(*shape, seed=1)
    path = written(tmp_path / "new/folder", one, other)
    with h5py.File(path) as file:
        assert list(file) == ["0.png", "1.png"]
        np.testing.assert_array_equal(file["1.png"][...], other)
        assert file["0.png"].dtype == np.float32 and file["0.png"].shape == shape
        assert file.attrs["inputs"] == "inputs" and '"threshold":0.5' in file.attrs["masks"]


def test_published_loops_over_groups_and_names(tmp_path: Path) -> None:
    """Folders are groups; inside, the names of the files."""
    names = ("AnnualCrop/a.jpg", "AnnualCrop/b.jpg", "River/a.jpg")
    outputs = [np.eye(3, dtype=np.float32)[n] for n in range(3)]
    path = written(tmp_path, *outputs, names=names)
    found = {}
    with h5py.File(path, "r") as file:
        for group in file:
            for dataset in file[group]:
                found[f"{group}/{dataset}"] = int(np.argmax(file[group][dataset][()]))
    assert found == dict(zip(names, (0, 1, 2), strict=True))


def test_an_error_leaves_the_file_that_was(tmp_path: Path) -> None:
    path = written(tmp_path, values(1, 4, 4))
    before = path.read_bytes()
    data = Data(test_input_path="inputs", test_output_path=str(tmp_path))
    with pytest.raises(ZeroDivisionError), open_sink(data, 3, images("a.png")) as sink:
        assert sink is not None
        sink.write(0, values(1, 4, 4))
        raise ZeroDivisionError
    assert [one.name for one in tmp_path.iterdir()] == ["output_3.h5"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("transforms", "task", "whole"),
    [
        ([], "foreground", True),
        ([{"center_crop": [2, 2]}], "foreground", False),
        ([], "channels", False),
    ],
)
def test_the_file_says_whether_predictions_lie_upon_images(
    tmp_path: Path, transforms: Any, task: Task, whole: bool
) -> None:
    content = {"test_input_path": "in", "test_output_path": str(tmp_path), "transforms": transforms}
    data = Data.model_validate(content)
    samples = ImageSet([Pair(Path("a.png"), (), "a.png")], 3, data=data, task=task)
    with open_sink(data, 1, samples) as sink:
        assert sink is not None
        sink.write(0, values(1, 2, 2))
    with h5py.File(tmp_path / "output_1.h5") as file:
        assert bool(file.attrs["whole_images"]) == whole
    if not whole:
        with (
            pytest.raises(InputError, match="no masks that lie upon whole image files"),
            open_predictions(tmp_path / "output_1.h5"),
        ):
            pass


def test_nothing_asked_for_nothing_written(tmp_path: Path) -> None:
    with open_sink(Data(test_input_path="inputs"), 1, images("a.png")) as sink:
        assert sink is None


@pytest.mark.parametrize("kilobytes", [8, 64, 400])
def test_a_full_disk_is_told_at_once(small_disk: Callable[[int], Path], kilobytes: int) -> None:
    folder = small_disk(kilobytes)
    data = Data(test_input_path="inputs", test_output_path=str(folder))
    count = 0
    with pytest.raises(OSError, match="No space left"), open_sink(data, 1, images("a")) as sink:
        assert sink is not None
        for number in range(200):
            sink._names = [f"{n}.png" for n in range(200)]  # type: ignore[attr-defined]
            sink.write(number, np.zeros((1, 40, 40), np.float32))
            count = number
    assert count < 100 and list(folder.iterdir()) == []


def predicted(config: Config, net: Net, channels: int = 1, dimensions: int = 3) -> Path:
    """All blocks through a network, into hdf5_outfile."""
    samples = opened(config, channels, dimensions)
    put_together(config.data, samples, net)
    assert config.data.hdf5_outfile
    return Path(config.data.hdf5_outfile)


def put_together(data: Data, samples: ArraySet, net: Net) -> None:
    with open_sink(data, 1, samples) as sink:
        assert sink is not None
        for indices in batches_in_order(samples.groups, 3):
            outputs = net(samples.batch(indices)[0]).numpy()
            for number, output in zip(indices.tolist(), outputs, strict=True):
                sink.write(number, output)


def same(x: torch.Tensor) -> torch.Tensor:
    return x


SLICERS: list[dict[str, Any]] = [
    {"sizes": [4, 3, 5]},
    {"sizes": [4, 3, 5], "padding": [1, 2, 0], "strides": [2, 1, 4]},
    {"sizes": [4, 3, 5], "padded_sizes": [5, 5, 8], "strides": [3, 2, 5]},
    {"sizes": [9, 7, 8]},
]
FLAT: list[dict[str, Any]] = [
    {"sizes": [1, 4, 5], "padded_sizes": [1, 6, 9]},
    {"sizes": [4, 1, 5], "transpose": True, "padding": [1, 0, 2], "strides": [3, 1, 2]},
]


@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
@pytest.mark.parametrize("front", [False, True], ids=["volume", "channel in front"])
@pytest.mark.parametrize("settings", SLICERS + FLAT, ids=str)
def test_an_identity_network_gives_the_volume_back(
    tmp_path: Path, settings: dict[str, Any], front: bool, half: bool
) -> None:
    volume = values(9, 7, 8)
    inputs = save_h5(tmp_path / "in.h5", input=volume[None] if front else volume)
    outfile = tmp_path / "new/prediction.h5"
    config = configured(
        inputs,
        None,
        slicers=[{**settings, "name": "pred"}],
        hdf5_outfile=str(outfile),
        hdf5_precision="half" if half else "single",
    )
    predicted(config, same, 1, 2 if settings in FLAT else 3)
    with h5py.File(outfile) as file:
        assert list(file) == ["pred"]
        assert file["pred"].shape == ((1, 9, 7, 8) if front else (9, 7, 8, 1))
        assert file["pred"].dtype == (np.float16 if half else np.float32)
        found = file["pred"][0] if front else file["pred"][..., 0]
    np.testing.assert_allclose(found, volume, atol=2e-3 if half else 1e-6)
    assert [one.name for one in outfile.parent.iterdir()] == ["prediction.h5"]


def test_the_published_shape_of_the_seismic_prediction(tmp_path: Path) -> None:
    """A tenth of 78x590x1006: channels last, as long as what the one block covers."""
    inputs = save_h5(tmp_path / "in.h5", input=values(8, 59, 101))
    slicer = {"name": "pred", "sizes": [6, 57, 99], "discard_remainders": True}
    config = configured(inputs, None, slicers=[slicer], hdf5_outfile=str(tmp_path / "p.h5"))
    with h5py.File(predicted(config, lambda x: torch.cat([x, x + 1, x + 2, -x], 1))) as file:
        assert file["pred"].shape == (6, 57, 99, 4)
        np.testing.assert_allclose(file["pred"][..., 3], -values(8, 59, 101)[:6, :57, :99])


def test_overlaps_are_averaged(tmp_path: Path) -> None:
    """Each block says its own number: where two overlap lies their mean."""
    inputs = save_h5(tmp_path / "in.h5", input=np.zeros((1, 1, 6), np.float32))
    slicers = [{"name": "pred", "sizes": [1, 1, 4], "strides": [1, 1, 2]}]
    config = configured(inputs, None, slicers=slicers, hdf5_outfile=str(tmp_path / "p.h5"))
    samples = opened(config, 1, 1)
    with open_sink(config.data, 1, samples) as sink:
        assert sink is not None
        for number in range(2):
            sink.write(number, np.full((1, 4), number + 1, np.float32))
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["pred"][0, 0, :, 0].tolist() == [1, 1, 1.5, 1.5, 2, 2]


def test_a_dataset_a_slicer_and_a_group_an_input(tmp_path: Path) -> None:
    one, other = values(4, 4, 4), values(6, 4, 4, seed=2)
    inputs = save_h5(tmp_path / "in.h5", a=one, deep__b=other)
    slicers = [{"sizes": [1, 4, 4]}, {"name": "across", "sizes": [2, 1, 4]}]
    config = configured(
        inputs,
        None,
        slicers=slicers,
        hdf5_outfile=str(tmp_path / "p.h5"),
        test_output_path=str(tmp_path / "out"),
    )
    with h5py.File(predicted(config, lambda x: 2 * x, 1, 2)) as file:
        found: dict[str, Any] = {}
        file.visititems(
            lambda name, d: found.update({name: d[...]}) if isinstance(d, h5py.Dataset) else None
        )
    names = ["a/across", "a/slices_1", "deep/b/across", "deep/b/slices_1"]
    assert sorted(found) == names
    for name, array in found.items():
        np.testing.assert_allclose(array[..., 0], 2 * (one if name[0] == "a" else other))
    with h5py.File(tmp_path / "out/output_1.h5") as file:
        assert file["deep/b/across/000003"].shape == (1, 2, 4)


def test_a_network_that_changes_the_size(tmp_path: Path) -> None:
    inputs = save_h5(tmp_path / "in.h5", input=values(4, 4, 4))
    slicers = [{"sizes": [4, 4, 4]}]
    config = configured(inputs, None, slicers=slicers, hdf5_outfile=str(tmp_path / "p.h5"))
    with pytest.raises(InputError, match=r"gives \(2, 4, 4\) for blocks of \(4, 4, 4\)"):
        predicted(config, lambda x: x[:, :, ::2])
    assert [one.name for one in tmp_path.iterdir()] == ["in.h5"]


def test_a_disk_without_room_for_the_volume(
    tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    folder = small_disk(100)
    inputs = save_h5(tmp_path / "in.h5", input=values(4, 100, 100))
    slicers = [{"sizes": [4, 4, 4]}]
    config = configured(inputs, None, slicers=slicers, hdf5_outfile=str(folder / "p.h5"))
    calls = []
    with pytest.raises(OSError, match="No space left"):
        predicted(config, lambda x: calls.append(1) or x)  # type: ignore[func-returns-value]
    assert len(calls) == 1, "told at the first block"
    assert list(folder.iterdir()) == []
