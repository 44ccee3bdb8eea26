"""Where a model runs, as a config or a command says it: `engine: vllm`, or `engine: {kind: openai, url: …}`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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

    url: str = Field("http://127.0.0.1:8000/v1", pattern=r"^https?://")
    """Where the server is, up to and with /v1."""

    key: str = "OPENAI_API_KEY"
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
    """The run stops, to be gone on with later, when it has spent this much."""


def _named(said: Any) -> Any:
    return {"kind": said} if isinstance(said, str) else said


EngineSettings = Annotated[Local | Vllm | OpenAI, Field(discriminator="kind"), BeforeValidator(_named)]
