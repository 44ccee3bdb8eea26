"""What can be set about a training run; free of torch, so that the command line can read it at once."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    optimizer_steps: int = Field(150, ge=1)
    """Optimiser steps, whatever the number of rows: the budget that runs are compared at."""

    batch_size: int = Field(16, ge=1)
    """Rows in each optimiser step."""

    rank: int = Field(16, ge=1, le=1024)
    """Rank of the LoRA matrices, on every linear layer but the head."""

    alpha: int = Field(32, ge=1)
    """LoRA scale; the update is multiplied by alpha / rank."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the LoRA matrices."""

    learning_rate: float = Field(2e-3, gt=0, le=1)
    """Highest learning rate; 2e-3 suits the embedded model, 2e-4 models of billions."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls, after a warm-up over the first 5 % of the steps."""

    max_length: int = Field(512, ge=8)
    """Tokens at which a row is cut."""

    seed: int = Field(0, ge=0)
    """Decides the first adapter weights and the order of the rows."""
