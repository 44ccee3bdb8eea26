"""vLLM in a process of its own: the only file that imports it. `VllmEngine` starts it, talks to it and ends it.

    python -m synthesis.vllm_worker FILE_DESCRIPTOR

Reads requests from the pipe between two steps of the engine, so that several callers share its batches, and sends each
answer when it is finished. Ends with its parent, however that ended.
"""

import json
import os
import sys
import threading
import time
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_SEND_EVERY = 0.1  # seconds: finished answers are sent together


def main(connection: Connection, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    settings = connection.recv()
    on_cpu = _is_cpu_build()
    _prepare(on_cpu, settings.pop("cpu_cache_gib"))
    from vllm import EngineArgs, LLMEngine
    from vllm.usage.usage_lib import UsageContext

    if on_cpu:  # where a prompt is read whole; on a GPU vLLM knows best
        settings["max_num_batched_tokens"] = max(8192, settings["max_model_len"])
    if settings["dtype"] != "float32" and not _is_quantised(settings):
        # logits rounded to bfloat16 are a tenth of a log-probability's error, and all that can be had without the rest
        settings["hf_overrides"] = {"head_dtype": "float32"}
    # as `LLM` starts it, which takes on more at once than an engine whose use nobody told
    arguments = EngineArgs(**settings, **(_CPU if on_cpu else {}), **_ALWAYS)
    engine = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
    scheduler = engine.vllm_config.scheduler_config
    facts = {"dtype": str(engine.model_config.dtype).removeprefix("torch.")}
    facts |= {"sequences_at_once": scheduler.max_num_seqs, "tokens_at_once": scheduler.max_num_batched_tokens}
    connection.send(("ready", facts))
    _serve(connection, engine)


# Compact JSON: a small model that may write white space between fields writes nothing else until its limit.
_ALWAYS = {
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    "enable_prefix_caching": True,
    "disable_log_stats": True,
    "trust_remote_code": False,
}
# A seeded request whose prompt is read in chunks kills the engine on a CPU ("CPU Generator does not use offset");
# compiling takes half a minute and gains little.
_CPU = {"enable_chunked_prefill": False, "enforce_eager": True}


def _prepare(on_cpu: bool, cache_gib: int) -> None:
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"}
    if on_cpu:  # else it wants most of the machine's memory, leaves a core idle, and starts a process more
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": str(cache_gib), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def _is_cpu_build() -> bool:
    try:
        return bool(metadata.version("vllm-cpu"))
    except metadata.PackageNotFoundError:
        return metadata.version("vllm").endswith("cpu")


def _is_quantised(settings: dict[str, Any]) -> bool:
    """Whether the head may be, too: vLLM computes such a one in the model's own type alone."""
    config = Path(settings["model"]) / "config.json"
    return bool(settings["quantization"]) or "quantization_config" in json.loads(config.read_text())


def _serve(connection: Connection, engine: Any) -> None:
    finished: list[tuple[str, Any]] = []
    sent = time.monotonic()
    while True:
        busy = engine.has_unfinished_requests()
        if finished and (not busy or time.monotonic() - sent > _SEND_EVERY):
            connection.send(("done", finished))
            finished, sent = [], time.monotonic()
        while connection.poll(0 if busy else None):
            what, given = connection.recv()
            if what == "ask":
                finished += [(r[0], refused) for r in given if (refused := _add(engine, *r))]
            else:
                engine.abort_request(given)
            busy = engine.has_unfinished_requests()
            if finished:
                break
        if busy:
            finished += [(out.request_id, _told(out)) for out in engine.step() if out.finished]


def _add(engine: Any, name: str, tokens: list[int], how: dict[str, Any], adapter: tuple | None) -> Any:
    """Hand one request to the engine; an answer at once where it refuses."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    how = dict(how)
    try:
        if limits := how.pop("structured_outputs", None):
            how["structured_outputs"] = StructuredOutputsParams(**limits)
        params = SamplingParams(**how, flat_logprobs=True, output_kind=RequestOutputKind.FINAL_ONLY)
        engine.add_request(name, {"prompt_token_ids": tokens}, params, lora_request=adapter and LoRARequest(*adapter))
    except Exception as why:  # whatever it is, it is about this request alone
        return "error", " ".join(str(why).split())[:300]
    return None


def _told(out: Any) -> tuple[str, Any]:
    """What the parent needs of an output, as plain lists: they are pickled."""
    scored = out.prompt_logprobs
    said = [(list(o.token_ids), o.finish_reason, _flat(o.logprobs)) for o in out.outputs]
    return "said", (said, _flat(scored), out.num_cached_tokens or 0)


def _flat(logprobs: Any) -> tuple[list[int], list[int], list[float]] | None:
    """Where each position starts, tokens and their log-probabilities; the chosen token comes first at its position."""
    return logprobs and (logprobs.start_indices, logprobs.token_ids, logprobs.logprobs)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, 9)


if __name__ == "__main__":
    os.set_inheritable(int(sys.argv[1]), False)  # or a child of ours would keep the pipe open after our death
    main(Connection(int(sys.argv[1])), os.getppid())
