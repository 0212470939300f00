"""A trained model, ready to predict.

from trainer.predict import load_model
mask = load_model("best_model").predict(array)      # (H, W) uint8: the class of each pixel
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.config import Data, Precision, Transform, Window
from trainer.data.images import prepared
from trainer.data.masks import Masks
from trainer.data.volumes.grid import Grid
from trainer.data.volumes.scans import Scan
from trainer.data.volumes.volume_file import Header
from trainer.errors import InputError
from trainer.tasks import Aim, Reading, Task, reading_of

if TYPE_CHECKING:
    import torch

    from trainer.data.transforms import BatchTransform
    from trainer.networks.build import SegmentationNetwork

Side = Annotated[int, Field(ge=1, le=20_000)]
MODEL_FILE = "best_model_file.pt"


class SeenImages(BaseModel):
    """What the images of a training looked like: see ImageSet.facts."""

    model_config = ConfigDict(frozen=True)

    grey: bool
    brightness: tuple[float, float]
    contrast: tuple[float, float]


class SliceUse(BaseModel):
    """Which channels of slice arrays the network takes, their size in pixels, and which planes of
    their masks it was trained to find (none: nobody knows)."""

    model_config = ConfigDict(frozen=True)

    channels: list[int]
    height: Side
    width: Side
    target: list[int] = []


class Use(BaseModel):
    """The part `use` of a checkpoint, as far as predicting needs it."""

    model_config = ConfigDict(frozen=True)

    image_size: tuple[Side, Side] | None = None
    transforms: list[Transform] = []
    input_transforms: list[Transform] = []
    target_transforms: list[Transform] = []
    masks: Masks | None = None
    class_names: list[str] = []
    task: Task | None = None
    grayscale: bool = False
    scaling: Literal["pixel / 255", "none"] = "pixel / 255"
    reading: Reading | None = None
    images: SeenImages | None = None
    volumes: Header | None = None
    slices: SliceUse | None = None
    window: Window | None = None
    precision: Precision = "auto"


def use_of(checkpoint: dict[str, Any], where: str) -> Use:
    """What a checkpoint says of its use, nothing where it has only weights; raises InputError."""
    try:
        return Use.model_validate(checkpoint.get("use", {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("use", *first["loc"]))
        raise InputError(f"{where}, {key}", first["msg"], "a .pt of this program") from None


def data_of(use: Use) -> Data:
    """The transforms of a checkpoint, as a section of a configuration."""
    return Data(
        transforms=use.transforms,
        input_grayscale=use.grayscale,
        type="images" if use.scaling != "none" else "numpy",
        input_transforms=use.input_transforms,
        target_transforms=use.target_transforms,
    )


class Segmented(NamedTuple):
    """What a model finds in a scan: `classes` (D, H, W) uint8 on its own grid, `probabilities`
    (C, d, h, w) as the network gives them, and `field`, the grid that these lie on."""

    classes: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    field: Grid


@dataclass(frozen=True)
class Model:
    """A trained network and how it is used; `load_model` makes one."""

    network: SegmentationNetwork
    transform: BatchTransform
    use: Use
    device: torch.device

    @property
    def _data(self) -> Data:
        return data_of(self.use)

    @property
    def masks(self) -> Masks | None:
        """What the masks of the training meant; None where nothing says so."""
        return self.use.masks

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) at the network; None: each image's own."""
        return self.use.image_size

    @property
    def classes(self) -> list[str]:
        """Names of the classes; their numbers are those in a predicted mask."""
        if self.use.volumes:
            return list(self.use.volumes.classes)
        return (
            self.masks.names if self.masks else self.use.class_names or ["background", "foreground"]
        )

    @property
    def label_values(self) -> list[tuple[str, int]]:
        """Of a model of volumes: what a written label holds for each class: the value that the
        class had in the training's own labels, or its number where a class had several."""
        assert self.use.volumes
        preparation = self.use.volumes.preparation
        groups = [preparation.labels.get(name, ()) for name in self.classes[1:]]
        if all(len(values) == 1 for values in groups):
            values = [preparation.background[0], *(group[0] for group in groups)]
            return list(zip(self.classes, values, strict=True))
        return [(name, number) for number, name in enumerate(self.classes)]

    @property
    def reading(self) -> Reading:
        """How the network's logits become probabilities."""
        described = self.network.description
        return self.use.reading or reading_of(described.activation, None, described.classes)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Logits of a batch (N, C, …) as the network takes it, in the training's precision."""
        from trainer.device import forward_of, possible

        precision = possible(self.use.precision, self.device)
        return forward_of(self.network, self.device, precision)(batch)

    def probabilities(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """An image (H, W) grey or (H, W, 3) RGB, 8 bit -> (C, h, w) at the network's size.

        C is 1 for foreground alone, else one a class. Raises InputError for another kind of array.
        """
        return np.asarray(self._probabilities(image).cpu().numpy()[0])

    def predict_scan(self, scan: Scan, mirror: bool = False) -> Segmented:
        """A scan as it came, prepared as those of the training were: the class of each of its own
        voxels. `mirror` averages over flips, whatever the training did.

        Raises InputError where the model is not of volumes, or the scan has other channels.
        """
        from trainer.data.volumes.windows import kept_region, predict_windows
        from trainer.evaluate_volumes import classes_at

        header, window = self.use.volumes, self.use.window
        if header is None or window is None or window.size is None:
            raise InputError("model", "it was not trained on volumes", "predict(image)")
        preparation = header.preparation
        if preparation.channels is None and len(scan.array) != len(header.channels):
            told = ", ".join(header.channels)
            found = f"has {len(scan.array)} channels, the model was trained on {told}"
            raise InputError(scan.name, found, f"{len(header.channels)} channels")
        import torch

        image = torch.from_numpy(preparation.image(scan.array, scan.grid))
        grid = preparation.prepared_grid(scan.grid)
        window = window.model_copy(update={"mirror": window.mirror or mirror})

        with torch.inference_mode():
            logits = predict_windows(self.forward, image.to(self.device), window.size or [], window)
            region = kept_region(grid.shape, window.size or [], window)
            field = grid.cropped([one.start for one in region], logits.shape[1:])
            aim = Aim("foreground", self.reading)
            classes = classes_at(logits, field, scan.grid, aim)
            output = self.network.output(logits[None])[0]
        return Segmented(classes.cpu().numpy(), output.cpu().numpy(), field)

    def predict(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image (H, W) or (H, W, 3), 8 bit -> the class of each pixel (H, W), at its size."""
        return self.predict_with_probabilities(image)[0]

    def predict_with_probabilities(
        self, image: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Both, from one pass through the network."""
        from trainer.data.transforms import comparable
        from trainer.evaluate import own_size_classes

        if not comparable(self._data):
            found = "its center_crop or rotate leaves no mask of the whole image"
            raise InputError("model", found, "probabilities(image), of what the network sees")
        if self.network.description.output_axes != 2:
            found = "this model does not segment images"
            raise InputError("model", found, "probabilities(image), or its predictions in HDF5")
        probabilities = self._probabilities(image)
        height, width = np.shape(image)[:2]
        classes = own_size_classes(probabilities[0], (height, width))
        return np.asarray(classes.cpu().numpy(), np.uint8), probabilities.cpu().numpy()[0]

    def _probabilities(self, image: NDArray[np.uint8]) -> torch.Tensor:
        import torch

        from trainer.data.transforms import channels_read, reading_steps
        from trainer.losses import probabilities
        from trainer.networks.description import check_size

        if self.use.scaling == "none":
            raise InputError(
                "model", "it was trained on arrays, not on images", "python -m trainer"
            )
        array = np.asarray(image)
        grey, colour = array.ndim == 2, array.ndim == 3 and array.shape[2] in (3, 4)
        if array.dtype != np.uint8 or not (grey or colour) or 0 in array.shape:
            found = f"an array of shape {array.shape} and type {array.dtype}"
            raise InputError("image", found, "(H, W) or (H, W, 3), uint8")
        channels = self.network.description.in_channels
        read = channels_read(self._data, channels)
        own = prepared(
            Image.fromarray(array), read, reading_steps(self._data), "image", self.use.grayscale
        )
        if self.size is None:
            check_size(self.network.description, (own.shape[2], own.shape[1]), "image")
        with torch.inference_mode():
            batch = self.transform.inputs(torch.from_numpy(own)[None].to(self.device))
            return probabilities(self.forward(batch), self.reading)


def model_file(path: Path) -> Path:
    """The checkpoint of a model: of a folder like best_model/, or the file itself."""
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        found = f"there is no model: {file} does not exist"
        raise InputError(str(path), found, "a folder best_model/ of a study, or a checkpoint .pt")
    return file


def load_model(
    path: str | Path = "best_model", device: str = "auto", *, trust_code: bool = False
) -> Model:
    """The model of a folder `best_model/`, or of a checkpoint (.pt), ready to predict.

    `device` is auto, cpu, cuda, cuda:N or mps. Raises InputError for anything that is no
    checkpoint of this program. Nothing in a checkpoint is executed; a network of somebody's own is
    a Python file beside it, which runs only with `trust_code`.
    """
    from trainer.checkpoint import check_code, code_of, load_checkpoint
    from trainer.data.transforms import BatchTransform, Order
    from trainer.device import open_device, placed
    from trainer.networks.build import build
    from trainer.networks.description import parse_network

    file = model_file(Path(path))
    checkpoint = load_checkpoint(file)
    if "network" not in checkpoint or "use" not in checkpoint:
        raise InputError(str(file), "does not say what its network is", "a .pt of this program")
    use = use_of(checkpoint, str(file))
    # Its code lies beside it, whatever path it names.
    description = parse_network(checkpoint["network"], str(file)).for_checkpoint()
    check_code(checkpoint, code_of(description, file), str(file))
    network = build(description, folder=file.parent, trust_code=trust_code)
    try:
        network.body.load_state_dict(checkpoint["state"])
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(str(file), f"does not fit its own network: {lines[-1].strip()}") from None
    for name, value in network.body.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(str(file), f"its weights {name} are not numbers", "a whole checkpoint")
    target = open_device(device, None, deterministic=False)
    task: Task = use.task or ("foreground" if description.classes == 1 else "classes")
    order: Order = "BGR" if description.kind == "keras" else "RGB"
    transform = BatchTransform(data_of(use), task, order)
    return Model(placed(network, target).eval(), transform, use, target)
