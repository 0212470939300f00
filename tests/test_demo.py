"""The made-up data set: the same for a seed, in the published layout, and no trivial task."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.folders import find_layout, pair
from trainer.data.images import read_image, read_mask
from trainer.errors import InputError
from trainer.prepare.__main__ import main
from trainer.prepare.demo import make_demo

SMALL = (96, 128)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("made") / "demo"
    make_demo(target, images=40, test_images=12, size=SMALL)
    return target


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def masks(demo: Path) -> list[np.ndarray]:
    return [read_mask(path) for path in sorted((demo / "train/targets").iterdir())]


def test_layout_pairs_every_image_with_its_mask(demo: Path) -> None:
    layout = find_layout(demo)
    pairs, faults = pair(layout.inputs, layout.targets)
    assert layout.test_inputs is not None
    test_pairs, test_faults = pair(layout.test_inputs, layout.test_targets)
    assert not faults
    assert not test_faults
    assert (len(pairs), len(test_pairs)) == (40, 12)
    assert not {p.name for p in pairs} & {p.name for p in test_pairs}
    for item in pairs:
        (mask,) = item.masks
        assert mask.name == item.name
        assert Image.open(item.image).mode == Image.open(mask).mode == "L"
        assert Image.open(item.image).size == Image.open(mask).size


def test_names_are_those_of_the_published_data(demo: Path) -> None:
    names = sorted(p.name for p in (demo / "train/inputs").iterdir())
    assert names[0] == "benign_001.png"
    assert {name.split("_")[0] for name in names} == {"benign", "malignant", "normal"}


def test_same_seed_same_files_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_demo(tmp_path / name, images=3, test_images=2, seed=seed, size=SMALL)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[key] != c[key] for key in a if "inputs" in key)
    assert len(set(a.values())) == len(a)


def test_sizes_vary_within_their_limits(demo: Path) -> None:
    sizes = {Image.open(path).size for path in (demo / "train/inputs").iterdir()}
    assert len(sizes) > 20
    assert all(SMALL[0] <= side <= SMALL[1] for size in sizes for side in size)


def test_masks_are_0_and_255_and_a_share_of_them_is_empty(demo: Path) -> None:
    found = masks(demo)
    assert set(np.unique(np.concatenate([mask.ravel() for mask in found]))) == {0, 255}
    assert sum(not mask.any() for mask in found) == round(0.15 * 40)
    empty = {p.name for p in (demo / "train/targets").iterdir() if not read_mask(p).any()}
    assert all(name.startswith("normal") for name in empty)
    shares = [float((mask > 0).mean()) for mask in found if mask.any()]
    assert 0.003 < min(shares) < max(shares) < 0.35


def test_lesions_are_darker_than_their_surroundings_but_not_by_a_threshold(demo: Path) -> None:
    gaps, below = [], []
    for path in sorted((demo / "train/inputs").iterdir()):
        image = read_image(path, 1)[0].astype(float)
        lesion = read_mask(demo / "train/targets" / path.name) > 0
        if not lesion.any():
            continue
        rows, columns = np.nonzero(lesion)
        top, left = max(rows.min() - 8, 0), max(columns.min() - 8, 0)
        around = np.zeros_like(lesion)
        around[top : rows.max() + 8, left : columns.max() + 8] = True
        gaps.append(image[around & ~lesion].mean() - image[lesion].mean())
        below.append(float((image[~lesion] < image[lesion].mean()).mean()))
    assert np.mean(gaps) > 15
    assert np.mean(np.array(gaps) > 0) > 0.9
    assert np.mean(below) > 0.1, "tissue elsewhere is as dark, so that grey alone does not do"


def test_refuses_a_folder_that_is_not_empty_and_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty") as caught:
        make_demo(tmp_path, images=1, test_images=1)
    assert caught.value.fix
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_refuses_a_file_and_numbers_that_make_no_sense(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="is a file"):
        make_demo(file)
    with pytest.raises(InputError, match="number of images"):
        make_demo(tmp_path / "new", images=0)
    with pytest.raises(InputError, match="seed"):
        make_demo(tmp_path / "new", seed=-1)
    assert not (tmp_path / "new").exists()


def test_an_interrupted_run_leaves_no_half_data_set(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    target = tmp_path / "demo"
    with pytest.raises(KeyboardInterrupt):
        make_demo(target, images=3, test_images=1, size=SMALL, progress=stop)
    assert not list(target.iterdir())


def test_command_line_says_what_was_written_and_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "demo")
    assert main(["demo", target, "--images", "2", "--test-images", "1"]) == 0
    told = capsys.readouterr().out
    assert "2 training and 1 test" in told
    assert f"--data {target}" in told
    assert main(["demo", target]) == 2
    told = capsys.readouterr().err
    assert "not empty" in told
    assert "Traceback" not in told
