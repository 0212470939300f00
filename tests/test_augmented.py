"""A case as the network sees it: what the trainer trains on, from wherever it is typed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests import studies
from trainer import epoch
from trainer.__main__ import main as run
from trainer.augmented import find_case, show_case
from trainer.data.folders import Pair
from trainer.errors import InputError
from trainer.review import main

RANDOM = [{"random_horizontal_flip": 0.5}, {"random_rotate": 30}, {"random_brightness": 0.3}]
MORE = [
    {"jitter_crop": 0.3},
    {"rotate": 12},
    {"center_crop": [16, 12]},
    {"convert_color": "BGR2RGB"},
]
NORMALIZE = {"normalize": {"mean": 0.4, "std": 0.2}}


def configuration(folder: Path, transforms: list[dict[str, Any]], **network: Any) -> Path:
    """A trial's folder: its layers.json is relative to it, its data is not."""
    trial = folder / "trial-0003"
    trial.mkdir(parents=True, exist_ok=True)
    described = {"network": "unet", "width": 2, "depth": 2, "activation": "sigmoid", **network}
    (trial / "layers.json").write_text(json.dumps(described))
    data = {f"{name}_path": str(folder / f"data/train/{name}s") for name in ("input", "target")}
    content = {
        "num_epochs": 2,
        "layers": "layers.json",
        "seed": 5,
        "data": {"type": "images", **data, "batch_size": 5, "transforms": transforms},
        "optimizer": {"type": "adam"},
        "loss": {"function": "nll" if network.get("classes") else "bce"},
    }
    (trial / "config.json").write_text(json.dumps({"neural_network": content}))
    return trial / "config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """16 images of 32x24 with masks."""
    studies.make_data(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("more", [[], MORE], ids=["some", "more"])
def test_the_versions_are_what_a_training_computes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, more: list[dict[str, Any]]
) -> None:
    """Inputs and targets of the first two epochs, caught in the trainer, image for image."""
    config = configuration(folder, [{"resize": [24, 16]}, *RANDOM, *more, NORMALIZE])
    seen: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    steps = epoch._steps

    def caught(*arguments: Any, **named: Any) -> Any:
        for inputs, targets, number in steps(*arguments, **named):
            seen.append((inputs.numpy().copy(), targets.numpy().copy()))
            yield inputs, targets, number

    monkeypatch.setattr(epoch, "_steps", caught)
    monkeypatch.chdir(folder)  # a run goes into its folder
    assert run([f"--config={config}", "--run-folder", str(config.parent), "--device", "cpu"]) == 0
    monkeypatch.chdir(folder)  # back
    views = show_case(config, "image_004.png", None).views
    assert [view.title for view in views[2:]] == [f"epoch {n}" for n in range(1, 7)]
    for past, view in enumerate(views[2:4]):
        batch = int(view.told.split(",")[0].removeprefix("batch "))
        inputs, targets = seen[past * 4 + batch - 1]
        plain = (inputs[:, 0] * 0.2 + 0.4).clip(0, 1)
        errors = np.abs(plain - view.image[None, :, :, 0]).max(axis=(1, 2))
        place = int(errors.argmin())
        assert errors[place] < 1e-6
        assert view.truth is not None
        np.testing.assert_array_equal((targets[place, 0] * 0.2 + 0.4) > 0.5, view.truth > 0)
        assert f"{inputs[place].min():.2f} to {inputs[place].max():.2f}" in view.told
    different = [not np.array_equal(a.image, b.image) for a, b in pairwise(views)]
    assert all(different[2:])


def test_a_trial_is_shown_from_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(folder, [{"resize": [24, 16]}, *RANDOM])
    monkeypatch.chdir(folder / "data")
    assert main(["--data", str(config), "--case", "2", "--out", "picture.png"]) == 0
    told = capsys.readouterr().out
    assert "image_002.png, training image 2 of 16" in told
    assert "random_rotate 30" in told and "resize 24x16" in told
    picture = np.asarray(Image.open("picture.png").convert("RGB"))
    assert (np.abs(picture.astype(int) - [255, 127, 14]).max(axis=2) < 8).sum() > 100, "outlines"
    assert main(["--data", str(config), "--case", "2", "--out", "picture.png"]) == 0


def test_without_a_random_transform_it_says_so(folder: Path) -> None:
    shown = show_case(configuration(folder, [{"resize": [24, 16]}]), "0", None)
    assert [view.title for view in shown.views] == ["on disk", "as the network gets it"]
    assert "no random transform: the network sees the same in every epoch" in shown.lines
    disk, network = shown.views
    assert disk.image.shape == (24, 32, 3) and network.image.shape == (16, 24, 3)


def test_several_classes_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values 0, 1 and 2 of a mask; a flip takes image and mask together."""
    for path in (folder / "data/train/targets").iterdir():
        mask = np.asarray(Image.open(path)) // 255
        mask[:, 16:] *= 2
        Image.fromarray(mask).save(path)
    flip = [{"random_horizontal_flip": 1.0}]
    config = configuration(folder, flip, classes=3, activation="softmax")
    shown = show_case(config, "1", None)
    assert shown.classes == ["class 0", "class 1", "class 2"]
    disk, network, first = shown.views[:3]
    assert disk.truth is not None and network.truth is not None and first.truth is not None
    np.testing.assert_array_equal(disk.truth, network.truth)
    np.testing.assert_array_equal(first.truth, network.truth[:, ::-1])
    np.testing.assert_allclose(first.image, network.image[:, ::-1], atol=1e-5)
    monkeypatch.chdir(folder)
    assert main(["--data", str(config)]) == 0 and Path("case_0.png").exists()


@pytest.mark.parametrize(
    ("case", "part", "expected"),
    [
        ("16", None, "there are 16 training images; accepted: 0 to 15"),
        ("-1", None, "there are 16 training images; accepted: 0 to 15"),
        ("imag_004.png", None, "did you mean 'image_004.png'?"),
        ("0", "validation", "this configuration has no validation images; accepted: training"),
    ],
)
def test_a_case_that_is_not_there(folder: Path, case: str, part: str | None, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        show_case(configuration(folder, []), case, part)
    assert expected in str(caught.value)


def test_a_case_by_name_stem_or_index() -> None:
    pairs = [Pair(Path(name), (), name) for name in ("a/7.png", "b.png", "7.png")]
    found = [find_case(pairs, case, "test") for case in ("b.png", "b", "a/7", "1", "7.png")]
    assert found == [1, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give either a file of predictions, or --data CONFIG"),
        (["a.h5", "--data", "c.json"], "give either"),
        (["a.h5", "--part", "test"], "--part goes with --data CONFIG"),
        (["--data", "c.json", "--images", "3"], "--images goes with predictions"),
    ],
)
def test_options_of_the_other_kind(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and expected in capsys.readouterr().err


def test_show_without_a_screen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(folder)
    assert main(["--data", str(configuration(folder, [])), "--show"]) == 2
    told = capsys.readouterr().err
    assert "--show: no window can be opened here" in told and "leave --show out" in told
    assert not list(folder.glob("*.png"))


def test_order_and_seeds_differ_between_epochs() -> None:
    from trainer.data.order import batch_seed, epoch_order

    assert sorted(epoch_order(0, 1, 9).tolist()) == list(range(9))
    assert not torch.equal(epoch_order(0, 1, 9), epoch_order(0, 2, 9))
    assert len({batch_seed(s, e, b) for s in range(3) for e in range(4) for b in range(5)}) == 60


def test_patches_are_shown_as_they_are_cut(folder: Path) -> None:
    patches = {"random_patches": {"number": 3, "size": 5}}
    config = configuration(folder, [{"resize": [24, 16]}, patches], in_channels=1)
    shown = show_case(config, "1", None)
    assert "drawn anew in every epoch: random_patches 3 of 5x5" in shown.lines
    cut = [(view.image == 0).all(axis=2).sum() for view in shown.views[2:]]
    assert min(cut) >= 25 and not np.array_equal(shown.views[2].image, shown.views[3].image)


def test_a_case_with_a_label(folder: Path) -> None:
    config = configuration(folder, [{"resize": [24, 16]}, *RANDOM], classes=2)
    content = json.loads(config.read_text())
    data = content["neural_network"]["data"]
    del data["target_path"], data["type"]
    data.update(input_type="images", target_type="labels", input_path=str(folder / "data/train"))
    layers = [
        {"class_name": "Conv2D", "config": {"name": "c", "filters": 2, "kernel_size": 3}},
        {"class_name": "GlobalAveragePooling2D", "config": {"name": "p"}},
    ]
    layers[0]["config"]["batch_input_shape"] = [None, 16, 24, 3]  # type: ignore[index]
    content["neural_network"]["layers"] = layers
    config.write_text(json.dumps(content))
    shown = show_case(config, "targets/image_001.png", None)
    assert shown.views[0].told.endswith("class targets") and len(shown.views) == 8
    assert all(view.truth is None for view in shown.views)
