"""Checkpoints that are whole or not there: written beside their place, moved into it, the one before kept till then."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from training.settings import TrainError

_NAME = re.compile(r"checkpoint-(\d+)")
_ROWS = "rows.json"
UNFINISHED = "unfinished"


class Checkpoints(TrainerCallback):
    """Saves into `folder` every so many seconds of training; `state` is kept with what the trainer itself saves."""

    def __init__(self, folder: Path, seconds: float, state: Callable[[], dict[str, Any]] = dict) -> None:
        self.folder, self.seconds, self.state, self.last = folder, seconds, state, time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if args.world_size > 1:  # clocks differ between processes, steps do not
            control.should_save = state.global_step % max(1, state.max_steps // 10) == 0
        else:
            control.should_save = time.monotonic() - self.last >= self.seconds
        control.should_save = control.should_save and state.global_step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if not state.is_world_process_zero:
            return
        name = f"checkpoint-{state.global_step}"
        made = self.folder / UNFINISHED / name
        (made / _ROWS).write_text(json.dumps(self.state()))
        made.rename(self.folder / name)
        for path in _whole(self.folder)[:-1]:
            shutil.rmtree(path, ignore_errors=True)
        self.last = time.monotonic()


def latest(folder: Path | None) -> Path | None:
    """The newest whole checkpoint."""
    return next(reversed(_whole(folder)), None) if folder and folder.exists() else None


def saved_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / _ROWS).read_text())


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
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=_step)


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name).group(1))
