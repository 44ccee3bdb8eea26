"""Checkpoints that are whole or not there: written beside their place, moved into it, the one before kept till then."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from training.settings import TrainError

_NAME = re.compile(r"checkpoint-(\d+)")
_SEEN = "seen.json"
UNFINISHED = "unfinished"


class Checkpoints(TrainerCallback):
    """Saves into `folder` every so many seconds of training; what `state` gives is kept with what the trainer saves.

    Of several processes the first one's clock decides for all, and `state` is asked of each, as it may have to gather.
    """

    def __init__(self, folder: Path, seconds: float, state: Callable[[], dict[str, Any]] = dict) -> None:
        self.folder, self.seconds, self.state, self.last = folder, seconds, state, time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        due = time.monotonic() - self.last >= self.seconds
        if args.world_size > 1:
            told = torch.tensor([due], dtype=torch.uint8, device=args.device)
            torch.distributed.broadcast(told, 0)
            due = bool(told.item())
        control.should_save = due and state.global_step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        seen = self.state()
        if args.world_size > 1:
            torch.distributed.barrier()  # each has written its own part, such as its random numbers' state
        self.last = time.monotonic()
        if not state.is_world_process_zero:
            return
        name = f"checkpoint-{state.global_step}"
        made = self.folder / UNFINISHED / name
        (made / _SEEN).write_text(json.dumps(seen))
        made.rename(self.folder / name)
        for path in _whole(self.folder)[:-1]:
            shutil.rmtree(path, ignore_errors=True)


def latest(folder: Path | None) -> Path | None:
    """The newest whole checkpoint."""
    return next(reversed(_whole(folder)), None) if folder and folder.exists() else None


def saved_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / _SEEN).read_text())


def not_saved(folder: Path, error: Exception) -> TrainError:
    """What to say when a checkpoint could not be written; what was begun is removed, what is whole stays."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    kept = latest(folder)
    where = f"step {_step(kept)} is intact" if kept else "there is none yet"
    return TrainError(
        f"a checkpoint could not be written to {folder} ({getattr(error, 'strerror', None) or error}); the last one: "
        f"{where}; free the disk, and the same command goes on from it"
    )


def _whole(folder: Path) -> list[Path]:
    """The oldest first; those of before the rows' state had this form are none."""
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / _SEEN).exists()), key=_step)


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name).group(1))
