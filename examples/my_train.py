"""One's own training (docs/contract.md): logistic regression of a pixel's brightness and place."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image

signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # asked to stop
config = json.loads(Path(sys.argv[1]).read_text())["neural_network"]
split = json.loads(Path(config["data"]["split"]).read_text())
threshold, targets = split["masks"]["threshold"], config["data"]["target_path"]
named = all(Path(targets, name).is_file() for name in split["parts"]["training"])
beside = targets == config["data"]["input_path"]
if threshold is None or beside or not named or not split["parts"]["validation"]:
    print("this example takes two values, masks apart named as the images, --select-on validation")
    sys.exit(2)  # every trial would fail so


def read(path, part):  # (images, 64, 64), 0 to 255; a mask has the name of its image
    files = [Path(config["data"][path], name) for name in split["parts"][part]]
    return np.stack([Image.open(file).convert("L").resize((64, 64)) for file in files])


def known(part):  # six numbers of each pixel, and whether it is foreground
    grey, (y, x) = read("input_path", part) / 64 - 2, np.mgrid[-1:1:64j, -1:1:64j]
    features = np.broadcast_arrays(1, grey, grey**2, y, y**2, x**2)
    return np.stack(features, axis=3), read("target_path", part) > threshold


(pixels, mask), (unseen, truth) = known("training"), known("validation")
weights, scores = np.array([-1.0, 0, 0, 0, 0, 0]), []  # at first, nothing is foreground
Path("checkpoints").mkdir(exist_ok=True)
for epoch in range(1, config["num_epochs"] + 1):
    for i in np.random.default_rng(epoch).permutation(len(pixels)):
        error = mask[i] - 1 / (1 + np.exp(-pixels[i] @ weights))
        error *= np.where(mask[i], 1 - mask.mean(), mask.mean())  # both kinds count the same
        weights += config["optimizer"]["learning_rate"] * np.tensordot(error, pixels[i]) / 64
    found = unseen @ weights > 0
    dice = [2 * (f & t).sum() / (f.sum() + t.sum()) for f, t in ((found, truth), (~found, ~truth))]
    scores.append(sum(dice) / 2)
    if scores[-1] == max(scores):
        np.savez("checkpoints/best.npz", weights=weights)
    with open("metrics.jsonl", "a") as file:
        print(json.dumps({"event": "epoch", "epoch": epoch, "accuracy": scores[-1]}), file=file)
