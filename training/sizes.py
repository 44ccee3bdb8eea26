"""How large a model is, by the headers of its files: no torch, nothing loaded."""

import json
import math
from pathlib import Path

from safetensors import safe_open

from training.settings import TrainError


def parameters(folder: Path) -> int:
    """How many parameters a model folder holds, by the headers of its weights; nothing is loaded."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        names = set(json.loads(index.read_text())["weight_map"].values())
    if not all((folder / name).exists() for name in names):
        raise TrainError(f"{folder} holds no model.safetensors; convert the model's weights to safetensors")
    total = 0
    for name in sorted(names):
        with safe_open(folder / name, framework="numpy") as weights:
            for key in weights.keys():  # noqa: SIM118  it is no dict
                total += math.prod(weights.get_slice(key).get_shape())
    return total
