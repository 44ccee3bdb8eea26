"""Where a model runs, as a config or a command says it: `engine: vllm`, or `engine: {kind: openai, url: …}`."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _address(said: Any) -> Any:
    if isinstance(said, str) and re.search(r"[@?#]", said):
        raise PydanticCustomError(
            "secret", "an address holds no user, password or query here; the key comes from the environment"
        )
    return said


def _variable(said: Any) -> Any:
    if isinstance(said, str) and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", said):
        raise PydanticCustomError(
            "secret", "this is the name of an environment variable, such as OPENAI_API_KEY, and not the key itself"
        )
    return said


class Local(_Strict):
    kind: Literal["local"] = "local"
    """In this process, with transformers: a CPU, or a small GPU."""


class Vllm(_Strict):
    kind: Literal["vllm"] = "vllm"
    """vLLM in a process of its own, which ends before training: a GPU, or its CPU build."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the weights and of what is computed with them."""

    context: int | None = Field(None, ge=16)
    """Most tokens of prompt and answer; the model's own if not given. Less needs less memory."""

    tensor_parallel: int = Field(1, ge=1)
    """GPUs that one model is spread over."""

    gpu_memory: float = Field(0.9, gt=0, le=1)
    """Share of each GPU's memory that may be taken."""

    quantization: str | None = None
    """How vLLM quantises weights as it loads them, such as fp8; a model that is quantised already says so itself."""

    cpu_cache_gib: int = Field(1, ge=1)
    """Memory for keys and values on a CPU, in GiB."""


class OpenAI(_Strict):
    kind: Literal["openai"] = "openai"
    """Any server that speaks OpenAI's protocol, vLLM's among them."""

    url: Annotated[str, BeforeValidator(_address)] = Field("http://127.0.0.1:8000/v1", pattern=r"^https?://")
    """Where the server is, up to and with /v1."""

    key: Annotated[str, BeforeValidator(_variable)] = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never written anywhere."""

    tokenizer: str | None = None
    """The model's tokenizer (nano, a folder or a hub name), if the server takes tokens, as vLLM's does: needed for
    log-probabilities of given answers, and to keep control tokens inside a row harmless."""

    revision: str | None = None
    """Name of this state of the model: answers are kept under it, wherever the server is. Else under its address."""

    at_once: int = Field(64, ge=1)
    """Most requests in flight; fewer where the server is slower or says 429."""

    timeout: float = Field(300.0, gt=0)
    """Seconds that one request may take."""

    attempts: int = Field(6, ge=1)
    """How often a request is tried that is refused for now, broken or late."""

    price_in: float = Field(0.0, ge=0)
    """Price of a million tokens read, in any currency."""

    price_out: float = Field(0.0, ge=0)
    """Price of a million tokens written."""

    budget: float | None = Field(None, gt=0)
    """The run stops, to be gone on with later, when it has spent this much on this model; what earlier commands of the
    run spent counts."""

    reasoning_tokens: int | None = Field(None, ge=0)
    """For models that think before they answer, such as OpenAI's gpt-5: tokens that they have for it, beyond those of
    the answer. They are asked without a temperature, and say no log-probabilities."""

    @model_validator(mode="after")
    def _fits(self) -> "OpenAI":
        if self.budget is not None and not (self.price_in or self.price_out):
            raise ValueError("a budget needs prices: say what a million tokens cost with price_in and price_out")
        if self.reasoning_tokens is not None and self.tokenizer:
            raise ValueError("reasoning_tokens is for a server that writes the prompt itself; leave out tokenizer")
        return self


def _named(said: Any) -> Any:
    return {"kind": said} if isinstance(said, str) else said


EngineSettings = Annotated[Local | Vllm | OpenAI, Field(discriminator="kind"), BeforeValidator(_named)]
