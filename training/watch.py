"""What a run learns about each of its rows on the way, from the losses that it computes anyway."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl
import torch

from training.encode import IGNORED, Encoded
from training.settings import TrainError

SEEN = {
    "id": pl.String,
    "tokens": pl.Int64,
    "learnt_tokens": pl.Int64,
    "times": pl.Int64,
    "first_loss": pl.Float64,
    "last_loss": pl.Float64,
    "first_el2n": pl.Float64,
    "cut": pl.Int64,
    "left_out": pl.String,
}


@dataclass(slots=True)
class Watch:
    """Per row: how often it was seen, and its loss and error the first and the last time.

    `first_el2n` is the root mean square of 1 - p over the row's learnt tokens, p the probability that the model gave
    each: the part of EL2N (Paul et al., 2021, arXiv 2107.07075), the norm of p - one-hot, that lies in the right
    token, and 1/sqrt(2) of it where one other token has the rest.
    """

    rows: list[Encoded]
    left_out: dict[str, str]
    seen: dict[int, "_Seen"] = field(default_factory=dict)

    def batch(self, step: int, rows: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor) -> None:
        """Take in a batch of a step, all of shape (sequences, places); TrainError names rows whose loss is none."""
        here = labels != IGNORED
        which, found = rows[here].cpu(), losses[here].detach().double().cpu()
        numbers, place = which.unique(return_inverse=True)
        count = torch.zeros(len(numbers), dtype=torch.double).index_add_(0, place, torch.ones_like(found))
        loss = torch.zeros_like(count).index_add_(0, place, found) / count
        error = (torch.zeros_like(count).index_add_(0, place, (1 - (-found).exp()) ** 2) / count).sqrt()
        if not bool(loss.isfinite().all()):
            names = [self.rows[int(i)].id for i, x in zip(numbers, loss, strict=True) if not x.isfinite()]
            raise TrainError(
                f"the loss is no number at {len(names)} of {len(numbers)} rows: {', '.join(names[:5])}"
                f"{' …' if len(names) > 5 else ''}; lower the learning rate, or look at these rows with --preview"
            )
        for i, n, new, wrong in zip(*(t.tolist() for t in (numbers, count, loss, error)), strict=True):
            again = round(n / sum(self.rows[i].learnt[1:]))  # a row may stand in a batch twice
            now = _Seen(again, step, new, wrong, step, new)
            self.seen[i] = self.seen[i].and_other(now) if i in self.seen else now

    def state(self) -> dict[str, Any]:
        """What all processes saw together; each of them calls this at once."""
        return {str(i): list(found) for i, found in self._gathered().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """In one of the processes: what all of them saw."""
        self.seen = {int(i): _Seen(*found) for i, found in state.items()}

    def gather(self) -> None:
        self.seen = self._gathered()

    def _gathered(self) -> dict[int, "_Seen"]:
        """Of a row that several saw, the earliest step's first loss and the latest one's last."""
        if not torch.distributed.is_initialized():
            return self.seen
        told: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(told, self.seen)
        together: dict[int, _Seen] = {}
        for one in told:
            for i, found in one.items():
                together[i] = together[i].and_other(found) if i in together else found
        return together

    def table(self) -> pl.DataFrame:
        """Every row that was given, in order, those left out at the end."""
        told = [
            (r.id, len(r.tokens), sum(r.learnt), *self._seen(i), r.cut or None, None) for i, r in enumerate(self.rows)
        ]
        told += [(i, None, None, 0, None, None, None, None, why) for i, why in self.left_out.items()]
        return pl.DataFrame(told, schema=SEEN, orient="row")

    def _seen(self, row: int) -> tuple[int, float | None, float | None, float | None]:
        if row not in self.seen:
            return 0, None, None, None
        found = self.seen[row]
        return found.times, found.first_loss, found.last_loss, found.first_error


class _Seen(NamedTuple):
    """What was seen of a row, and at which steps."""

    times: int
    first_step: int
    first_loss: float
    first_error: float
    last_step: int
    last_loss: float

    def and_other(self, other: "_Seen") -> "_Seen":
        """Both together, whichever came first: the steps tell."""
        first = other if other.first_step < self.first_step else self
        last = other if other.last_step >= self.last_step else self
        return _Seen(
            self.times + other.times,
            *(first.first_step, first.first_loss, first.first_error),
            *(last.last_step, last.last_loss),
        )
