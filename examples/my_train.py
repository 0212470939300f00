"""A training script of one's own (docs/contract.md): each pixel by the brightness around it."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # asked to stop
config = json.loads(Path(sys.argv[1]).read_text())["neural_network"]
data, chosen = config["data"], config["optimizer"]
parts = json.loads(Path(data["split"]).read_text())["parts"]


def read(folder: str, part: str) -> torch.Tensor:
    """(N, 1, H, W) in [0, 1]; case_1.png may have the mask case_1_mask.png."""
    stems = [Path(name).stem for name in parts[part]]
    files = [min(Path(folder).glob(f"{s}*"), key=lambda file: len(file.name)) for s in stems]
    images = [Image.open(f).convert("L").resize(data["transforms"][0]["resize"]) for f in files]
    return torch.tensor(np.stack(images)[:, None] / 255, dtype=torch.float32)


inputs, targets = (read(data[key], "training") for key in ("input_path", "target_path"))
unseen, truth = (read(data[key], "validation") for key in ("input_path", "target_path"))
torch.manual_seed(0)
network = torch.nn.Conv2d(1, 1, 9, padding=4)
optimizers = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD}
optimizer = optimizers[chosen["type"]](network.parameters(), lr=chosen["learning_rate"])
best = -1.0
for epoch in range(1, config["num_epochs"] + 1):
    for batch in torch.randperm(len(inputs)).split(data["batch_size"]):
        optimizer.zero_grad()
        torch.nn.BCEWithLogitsLoss()(network(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    found, lesion = network(unseen) > 0, truth > 0.5
    dice = [
        (2.0 * (f & t).sum() / (f.sum() + t.sum())) for f, t in ((found, lesion), (~found, ~lesion))
    ]
    accuracy = float(torch.stack(dice).nan_to_num(1).mean())
    if accuracy > best:
        best = accuracy
        Path("checkpoints").mkdir(exist_ok=True)
        torch.save(network.state_dict(), "checkpoints/best.pt")
    with open("metrics.jsonl", "a") as file:
        print(json.dumps({"event": "epoch", "epoch": epoch, "accuracy": accuracy}), file=file)
