"""One's own training (docs/contract.md): logistic regression of the brightness of pixels."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image

signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # asked to stop
config = json.loads(Path(sys.argv[1]).read_text())["neural_network"]
data, split = config["data"], json.loads(Path(config["data"]["split"]).read_text())
if data["target_path"] == data["input_path"] or split["masks"]["threshold"] is None:
    print("this example takes masks of two values in a folder of their own")
    sys.exit(2)  # every trial would fail so


def read(folder, part):  # (images, 64, 64), 0 to 255; here a mask has the name of its image
    files = [Path(data[folder], name) for name in split["parts"][part]]
    return np.stack([Image.open(file).convert("L").resize((64, 64)) for file in files])


def known(part):  # a constant, the brightness and its square; whether it is foreground
    grey, masks = read("input_path", part) / 64 - 2, read("target_path", part)
    return np.stack([grey**0, grey, grey**2], axis=3), masks > split["masks"]["threshold"]


(pixels, mask), (unseen, truth) = known("training"), known("validation")
weights, share, scores = np.array([-1.0, 0, 0]), mask.mean(), []
Path("checkpoints").mkdir(exist_ok=True)
for epoch in range(1, config["num_epochs"] + 1):
    for x, y in zip(pixels, mask, strict=True):  # foreground and background count the same
        error = np.where(y, 1 - share, share) * (y - 1 / (1 + np.exp(-x @ weights)))
        weights += config["optimizer"]["learning_rate"] * np.tensordot(error, x) / 64
    found = unseen @ weights > 0
    dice = [2 * (f & t).sum() / (f.sum() + t.sum()) for f, t in ((found, truth), (~found, ~truth))]
    scores.append(sum(dice) / 2)
    if scores[-1] == max(scores):
        np.save("checkpoints/best.npy", weights)
    with open("metrics.jsonl", "a") as file:
        print(json.dumps({"event": "epoch", "epoch": epoch, "accuracy": scores[-1]}), file=file)
