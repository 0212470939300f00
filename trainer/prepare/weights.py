"""Fetches the ImageNet weights of a network's encoder, once, on a machine with internet.

    python -m trainer.prepare weights layers/resunet.json

Sources are those of segmentation_models_pytorch (smp): its own table, and timm's for the encoders
whose name begins with `tu-`. Only safetensors files are read, so nothing is unpickled. A file
appears in the store (trainer/networks/weights.py) when the network has loaded it strictly.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from trainer.errors import InputError, NoSpace, nearest
from trainer.networks.description import Network, read_network
from trainer.networks.smp import build_smp, import_smp
from trainer.networks.weights import find_weights, sha256, stored_path, weights_folder

HUB = "https://huggingface.co"
FILE = "model.safetensors"


@dataclass(frozen=True)
class Source:
    """Where the weights of an encoder are published, and what is known of them there.

    `load(encoder, file)` gives the encoder with the weights of the published file.
    """

    repository: str
    revision: str | None
    license: str | None
    trained_on: str
    load: Callable[[nn.Module, Path], nn.Module]


def fetch(layers: Path) -> None:
    """Puts the ImageNet weights of the encoder that a network file names into the store.

    Prints what it wrote and the next step; does nothing where they are there and whole. Raises
    InputError where they cannot be had, NoSpace where the disk is full.
    """
    network = read_network(layers)
    where = f"{layers}, encoder"
    if network.encoder is None:
        found = f"the network '{network.network}' has no published weights: it starts from random"
        raise InputError(str(layers), found, "a network with an encoder, like layers/resunet.json")
    target = stored_path(network)
    if _is_there(network, layers):
        build_smp(network, target)
        print(f"The ImageNet weights of {network.encoder} are there already, and whole: {target}")
        return
    fresh: Any = build_smp(network.model_copy(update={"in_channels": 3}), None)
    source = _timm_source(network, where) if _is_timm(network) else _smp_source(network, where)
    print(f"Fetching the ImageNet weights of {network.encoder} from {source.repository} …")
    file = _download(source, network)
    from safetensors import SafetensorError

    try:
        encoder = source.load(fresh.encoder, file)
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        fix = f"delete it and fetch again; if that does not help, the versions differ ({file})"
        raise InputError(source.repository, f"does not fit the encoder: {first}", "", fix) from None
    try:
        _store(encoder, network, source, file)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"no space left for {target}") from None
        found = f"cannot be written: {error.strerror or error}"
        raise InputError(str(target), found, fix="set RML_WEIGHTS to another folder") from None
    size = target.stat().st_size / 1e6
    print(f"Wrote {target} ({size:.0f} MB) and, beside it, where it comes from (.json).")
    print("For a machine without internet: copy this folder to it, and set RML_WEIGHTS there:")
    print(f"  {weights_folder()}")
    print(f"Next: python rml_optimization.py --layers {layers} --data FOLDER")
    print("  Without --weights a study starts from them, and says so.")


def _is_there(network: Network, layers: Path) -> bool:
    """Whether the store has the weights with the right checksum; says so where they are damaged."""
    target = stored_path(network)
    if not target.is_file():
        return False
    try:
        find_weights(network.model_copy(update={"weights": "imagenet"}), str(layers))
    except InputError as error:
        print(f"{target}: {error.found}. Fetching it again.")
        return False
    return True


# ---- sources ----
def _is_timm(network: Network) -> bool:
    return str(network.encoder).startswith("tu-")


def _smp_source(network: Network, where: str) -> Source:
    """An encoder in smp's own table."""
    encoders: dict[str, Any] = import_smp().encoders.encoders
    published = encoders[str(network.encoder)]["pretrained_settings"]
    if "imagenet" not in published:
        have = [
            name for name, entry in encoders.items() if "imagenet" in entry["pretrained_settings"]
        ]
        found = f"'{network.encoder}' has no imagenet weights{nearest(str(network.encoder), have)}"
        raise InputError(where, found, fix="another encoder, or random weights (--weights none)")

    def load(encoder: nn.Module, file: Path) -> nn.Module:
        from safetensors.torch import load_file

        encoder.load_state_dict(load_file(file))
        return encoder

    entry = published["imagenet"]
    return Source(entry["repo_id"], entry["revision"], None, "imagenet", load)


def _timm_source(network: Network, where: str) -> Source:
    """An encoder of timm, `tu-NAME` or `tu-NAME.TAG`."""
    import timm

    name = str(network.encoder).removeprefix("tu-")
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id or config.hf_hub_filename or config.custom_load:
        raise InputError(
            where,
            f"timm names no safetensors file of '{name}' on its hub",
            "an encoder whose weights need no unpickling, like resnet50 or tu-convnext_tiny",
            "another encoder, or random weights (--weights none)",
        )

    def load(encoder: Any, file: Path) -> nn.Module:
        # The whole classifier loads strictly, which shows that the file is whole and fits; the
        # encoder is a part of it, and timm itself renames what that part calls otherwise.
        overlay = {"file": str(file)}
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        return import_smp().encoders.get_encoder(
            f"tu-{name}",
            depth=encoder._depth,
            weights=True,
            output_stride=encoder._output_stride,
            pretrained_cfg_overlay=overlay,
        )

    return Source(config.hf_hub_id, None, config.license, str(config.tag), load)


# ---- hub ----
def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def _download(source: Source, network: Network) -> Path:
    """The published file in the hub's own cache, where a cut download goes on and a file that is
    there needs no internet."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: dict[str, Any] = {"revision": source.revision, "endpoint": _hub()}
    try:
        return Path(hf_hub_download(source.repository, FILE, local_files_only=True, **asked))
    except LocalEntryNotFoundError:
        pass
    try:
        # Asked once before: the download itself repeats for half a minute without internet.
        get_hf_file_metadata(hf_hub_url(source.repository, FILE, **asked))
        return Path(hf_hub_download(source.repository, FILE, **asked))
    except Exception as error:  # of several libraries: HTTP, TLS, proxies, the hub's own
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"{_hub()}/{source.repository}",
            f"cannot be fetched ({type(error).__name__}: {reason})",
            "internet access to this address, or a mirror of it in HF_ENDPOINT",
            "run this command on a machine with internet, copy the folder "
            f"{stored_path(network).parent} from there to the same place here (or set RML_WEIGHTS "
            "to it), or start from random weights: --weights none",
        ) from None


def _published_license(source: Source, revision: str) -> str | None:
    """As the hub's page of the weights says; None where it does not, or does not answer."""
    from huggingface_hub import HfApi

    try:
        card = HfApi(endpoint=_hub()).model_info(source.repository, revision=revision).card_data
    except Exception:  # what is known of the licence must not stop the weights
        return None
    return str(card["license"]) if card and card.get("license") else None


# ---- store ----
def _store(encoder: nn.Module, network: Network, source: Source, file: Path) -> None:
    """Writes weights and origin beside their names, loads them as a trial would, renames them."""
    from safetensors.torch import save_file

    target = stored_path(network)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside_origin = target.with_name(f".{target.stem}.json.{os.getpid()}")
    try:
        save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, beside)
        build_smp(network, beside)
        revision = file.parent.name  # the cache has a folder for each commit
        origin = {
            "encoder": network.encoder,
            "weights": "imagenet",
            "trained_on": source.trained_on,
            "source": f"{_hub()}/{source.repository}/resolve/{revision}/{FILE}",
            "revision": revision,
            "source_sha256": sha256(file),
            "sha256": sha256(beside),
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "license": source.license or _published_license(source, revision),
            "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        beside_origin.write_text(json.dumps(origin, indent=4) + "\n", encoding="utf-8")
        os.replace(beside_origin, target.with_suffix(".json"))
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
        beside_origin.unlink(missing_ok=True)
