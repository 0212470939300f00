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
split = json.loads(Path(data["split"]).read_text())
parts, threshold = split["parts"], split["masks"]["threshold"] / 255


def read(folder, part):
    """(N, 1, H, W) in [0, 1]; the mask of case_1.png may be called case_1_mask.png."""
    stems = [Path(name).stem for name in parts[part]]
    files = [min(Path(folder).glob(f"{s}*"), key=lambda file: len(file.name)) for s in stems]
    images = [Image.open(f).convert("L").resize(data["transforms"][0]["resize"]) for f in files]
    return torch.tensor(np.stack(images)[:, None] / 255, dtype=torch.float32)


inputs, unseen = (read(data["input_path"], part) for part in ("training", "validation"))
targets = read(data["target_path"], "training") > threshold
truth = read(data["target_path"], "validation") > threshold
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.InstanceNorm2d(1), torch.nn.Conv2d(1, 1, 9, padding=4))
optimizers = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD}
optimizer = optimizers[chosen["type"]](network.parameters(), lr=chosen["learning_rate"])
loss, best = torch.nn.BCEWithLogitsLoss(), -1.0
Path("checkpoints").mkdir(exist_ok=True)
for epoch in range(1, config["num_epochs"] + 1):
    for batch in torch.randperm(len(inputs)).split(data["batch_size"]):
        optimizer.zero_grad()
        loss(network(inputs[batch]), targets[batch].float()).backward()
        optimizer.step()
    found = network(unseen) > 0
    dice = [2 * (f & t).sum() / (f.sum() + t.sum()) for f, t in ((found, truth), (~found, ~truth))]
    accuracy = float(sum(dice) / 2)
    if accuracy > best:
        best = accuracy
        torch.save(network.state_dict(), "checkpoints/best.pt")
    with open("metrics.jsonl", "a") as file:
        print(json.dumps({"event": "epoch", "epoch": epoch, "accuracy": accuracy}), file=file)
