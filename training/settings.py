"""What can be set about a training run; free of torch, so that the command line can read it at once."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Method = Literal["lora", "qlora", "full"]
TooLong = Literal["drop", "truncate", "refuse"]

# Learning rates by the model's parameters. The first line was measured on the embedded model (models/nano/README.md);
# 2e-4 up to 13 billion and 1e-4 above are QLoRA's (Dettmers et al., 2023, arXiv 2305.14314, table 9), whose batch of
# 16 rows is the default too; a full run takes a tenth, 2e-5 and 1e-5, as Tulu 2 does (Ivison et al., 2023, 2311.10702).
LEARNING_RATES: tuple[tuple[float, float], ...] = ((50e6, 2e-3), (13.5e9, 2e-4), (float("inf"), 1e-4))
FULL = 0.1


class TrainError(Exception):
    """The rows or the model cannot be trained on as they are; the message names them and the remedy."""


# How a run is carried out decides its speed and memory, and at most the last digits of what comes of it.
EXECUTION = ("rows_at_once", "gradient_checkpointing", "processes")


class Run(BaseModel):
    """What both kinds of training are told alike."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    batch_size: int = Field(16, ge=1)
    """Rows, or pairs, in each optimiser step."""

    rows_at_once: int | None = Field(None, ge=1)
    """Of them, how many go through the model together, a divisor of the batch; less is slower and takes less memory."""

    processes: int = Field(1, ge=1)
    """Processes, one for each GPU of this machine."""

    rank: int = Field(16, ge=1, le=1024)
    """Rank of the LoRA matrices."""

    alpha: int = Field(32, ge=1)
    """LoRA scale; the update is multiplied by alpha / rank, with --rslora by alpha / sqrt(rank)."""

    learning_rate: float | None = Field(None, gt=0, le=1)
    """Highest learning rate; by the size and kind of the model if not given (docs/training.md)."""

    max_length: int = Field(512, ge=8)
    """Most tokens of a row, or of a prompt with either answer; the model's context if that is less."""

    too_long: TooLong = "drop"
    """A row or a pair over max_length: leave it out; truncate: leave out its earliest turns until the rest fits; or
    refuse to start. What was left out is counted and named."""

    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Compute activations again in the backward pass: a third slower, far less memory. auto: on a GPU."""

    seed: int = Field(0, ge=0)
    """Decides the first weights of a fresh adapter and the order of the rows."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.rows_at_once and self.batch_size % self.rows_at_once:
            raise ValueError(f"rows_at_once {self.rows_at_once} does not divide batch_size {self.batch_size}")
        return self


class TrainConfig(Run):
    method: Method = "lora"
    """lora; qlora: the base in 4 bits (NF4, double quantisation); full: every weight, gives a model of its own."""

    optimizer_steps: int = Field(150, ge=1)
    """Optimiser steps, whatever the number of rows: the budget that runs are compared at."""

    targets: str = "all-linear"
    """Layers that get LoRA matrices: all linear ones but the head, or names with commas, such as q_proj,v_proj."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the LoRA matrices."""

    rslora: bool = False
    """Scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones (Kalajdzievski, 2023)."""

    dora: bool = False
    """Learn magnitude and direction apart (DoRA: Liu et al., 2024); slower, helps at low ranks."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls, after a warm-up over the first 5 % of the steps."""

    packing: bool = False
    """Put the rows of a step into few sequences of max_length, kept apart; turns itself off where the model cannot."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method == "full" and (self.dora or self.rslora):
            raise ValueError("dora and rslora are about adapters, and a full run has none")
        return self

    def for_model(self, parameters: float) -> "TrainConfig":
        """The same settings with what is left to the size of the model filled in."""
        if self.learning_rate is not None:
            return self
        rate = next(rate for size, rate in LEARNING_RATES if parameters <= size)
        rate = float(f"{rate * FULL:.6g}") if self.method == "full" else rate
        return self.model_copy(update={"learning_rate": rate})


# DPO's learning rate as a share of LoRA's: 5e-6 beside 2e-4 in the recipes of Zephyr (alignment-handbook, QLoRA).
DPO = 1 / 40


class PreferConfig(Run):
    method: Literal["lora", "qlora"] = "lora"
    """lora; qlora: the base in 4 bits (NF4, double quantisation)."""

    optimizer_steps: int = Field(50, ge=1)
    """Optimiser steps."""

    beta: float = Field(0.1, gt=0)
    """How strongly the tuned model is held to the one it starts from (the paper's; Zephyr's best was 0.01)."""

    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls, after a warm-up over the first 10 % of the steps."""

    def for_model(self, parameters: float) -> "PreferConfig":
        """The same settings with what is left to the size of the model filled in."""
        if self.learning_rate is not None:
            return self
        rate = TrainConfig().for_model(parameters).learning_rate
        return self.model_copy(update={"learning_rate": float(f"{rate * DPO:.6g}")})

    def as_training(self) -> TrainConfig:
        """The model as it is loaded: a fresh adapter has the defaults of supervised training."""
        shared = {name: getattr(self, name) for name in Run.model_fields}
        return TrainConfig(method=self.method, **shared)
