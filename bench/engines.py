"""Rows a second through Thresher on its engines, against the same prompts given to vLLM and to a server by hand.

    python -m bench.engines [--rows 20000] [--served 2000] [--dtype bfloat16]

Prints ratios of one run, on the embedded model and the requests of SNIPS, each made different by a number. Starting an
engine is not counted. `bare` is one call of `LLM.generate` with the rendered prompts, in a process of its own; it takes
turns with `thresher`: the step `evaluate` on a dataset, which reads it, renders, tokenises, asks, keeps every response,
compares and writes the result. `by hand` is OpenAI's client with 64 requests in flight.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from curation.step import find_step
from flows import engines, steps  # noqa: F401  registers every step
from flows.engine_settings import OpenAI, Vllm
from flows.engines import NANO, EngineSpec, leases, release
from flows.run import run_step
from storage.importing import import_files
from storage.store import Store
from synthesis.chat import load_chat
from tests.synthesis.engines import vllm_server

SNIPS = Path(__file__).parents[1] / "examples/snips/test.jsonl"
TOKENS = 16


def main() -> None:
    if sys.argv[1:2] == ["bare"]:
        return bare(*sys.argv[2:])
    said = argparse.ArgumentParser()
    said.add_argument("--rows", type=int, default=20_000)
    said.add_argument("--served", type=int, default=2_000)
    said.add_argument("--dtype", default="bfloat16")
    asked = said.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prompts = write_rows(place / "rows.jsonl", asked.rows)
        (place / "prompts.json").write_text(json.dumps(prompts))
        against_bare(place, asked.rows, asked.dtype)
        if asked.served:
            against_others(place, prompts[: asked.served], asked.served, asked.dtype)


def write_rows(path: Path, count: int) -> list[str]:
    """Rows for import, and their prompts as the chat template writes them."""
    texts = [json.loads(line)["input"] for line in SNIPS.open()]
    rows = [{"instruction": f"{i}: {texts[i % len(texts)]}", "output": "PlayMusic"} for i in range(count)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    chat = load_chat(NANO)
    return [chat.render([{"role": "user", "content": row["instruction"]}], ask=True) for row in rows]


Took = tuple[float, float]  # seconds by the clock, and of processors: the second tells more where others work too


def spent() -> float:
    """Processor seconds of this process and of vLLM's, if there is one."""
    workers = [e._base.process.pid for (kind, *_), e in engines._LOADED.items() if kind == "vllm"]
    return time.process_time() + sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in workers if pid)


def through_thresher(place: Path, spec: EngineSpec, rows: int) -> Took:
    """What `evaluate` takes for a dataset of so many rows, the engine being there."""
    store = Store(place / f"store-{spec.kind}-{rows}-{time.monotonic_ns()}")
    head = place / f"head-{rows}.jsonl"
    head.write_text("\n".join((place / "rows.jsonl").read_text().split("\n")[:rows]))
    pool = import_files(store, [head], "rows").dataset
    evaluate = find_step("evaluate")
    config = evaluate.config(max_tokens=TOKENS, likelihood=False)
    lease = leases({"student": spec}, store)
    with lease.open() as roles:  # the first questions are slower, and start it
        roles["student"].generate([[{"role": "user", "content": f"warm {i}"}] for i in range(64)], max_tokens=4)
    for engine in (e for (kind, *_), e in engines._LOADED.items() if kind == "vllm"):
        facts = engine._base.process.start().facts
        print(f"vllm: at once {facts['sequences_at_once']} {facts['tokens_at_once']}", file=sys.stderr)
    began, before = time.monotonic(), spent()
    made = run_step(store, evaluate, config, pool, lease=lease)
    took = time.monotonic() - began, spent() - before
    print(f"{spec.kind}: {rows} rows in {took[0]:.1f} s", file=sys.stderr, flush=True)
    assert store.read(made)["student_answer"].null_count() == 0
    return took


def against_bare(place: Path, rows: int, dtype: str) -> None:
    command = [sys.executable, "-m", "bench.engines", "bare", str(place / "prompts.json"), dtype]
    pipe = subprocess.PIPE
    other = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    spec = EngineSpec(kind="vllm", settings=Vllm(dtype=dtype))

    def bare_once(count: int = rows) -> Took:
        other.stdin.write(f"{count}\n")
        other.stdin.flush()
        while not (line := other.stdout.readline()).startswith("took "):
            if line.startswith("at once"):
                print(f"bare: {line.strip()} (sequences, tokens)", file=sys.stderr)
            if not line:
                raise SystemExit("the bare process died")
        print(f"bare: {count} rows in {line.split()[1]} s", file=sys.stderr, flush=True)
        return tuple(map(float, line.split()[1:]))

    bare_once(64)  # to be warm
    took: dict[str, list[Took]] = {"bare": [], "thresher": []}
    for _ in range(2):
        took["bare"].append(bare_once())
        took["thresher"].append(through_thresher(place, spec, rows))
    other.stdin.close()
    other.wait()
    release()
    told(f"{rows:,} short prompts, {TOKENS} tokens at most", rows, took, "bare")


def against_others(place: Path, prompts: list[str], rows: int, dtype: str) -> None:
    took = {
        "vllm": [through_thresher(place, EngineSpec(kind="vllm", settings=Vllm(dtype=dtype)), rows)],
        "local": [through_thresher(place, EngineSpec(), rows)],
    }
    release()
    told(f"{rows:,} prompts, through thresher", rows, took, "local")
    os.environ["BENCH_KEY"] = "secret-1"
    with vllm_server(place, dtype) as url:
        spec = EngineSpec(kind="openai", model="nano", settings=OpenAI(url=url, key="BENCH_KEY", tokenizer="nano"))
        asyncio.run(by_hand(url, prompts[:64]))
        took = {"by hand": [], "thresher": []}
        for _ in range(2):
            took["by hand"].append(asyncio.run(by_hand(url, prompts)))
            took["thresher"].append(through_thresher(place, spec, rows))
        release()
    told(f"{rows:,} prompts, by a server", rows, took, "by hand")


async def by_hand(url: str, prompts: list[str]) -> Took:
    from openai import AsyncOpenAI

    client, free = AsyncOpenAI(base_url=url, api_key="secret-1"), asyncio.Semaphore(64)

    async def one(text: str) -> str:
        async with free:
            answer = await client.completions.create(model="nano", prompt=text, max_tokens=TOKENS, temperature=0)
            return answer.choices[0].text

    began, before = time.monotonic(), time.process_time()
    await asyncio.gather(*[one(p) for p in prompts])
    return time.monotonic() - began, time.process_time() - before


def bare(path: str, dtype: str) -> None:
    """One call of `LLM.generate` for all prompts, each time that a line comes in."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, SamplingParams

    like = {"enforce_eager": True, "max_num_batched_tokens": 8192, "enable_chunked_prefill": False}
    model = LLM(str(NANO), dtype=dtype, max_model_len=2048, **like)
    scheduler = model.llm_engine.vllm_config.scheduler_config
    print(f"at once {scheduler.max_num_seqs} {scheduler.max_num_batched_tokens}", flush=True)
    prompts = [{"prompt": p} for p in json.loads(Path(path).read_text())]
    for line in sys.stdin:
        began, before = time.monotonic(), time.process_time()
        model.generate(prompts[: int(line)], SamplingParams(temperature=0, max_tokens=TOKENS), use_tqdm=False)
        print(f"\ntook {time.monotonic() - began:.3f} {time.process_time() - before:.3f}", flush=True)


def told(what: str, rows: int, took: dict[str, list[Took]], base: str) -> None:
    print(f"\n{what}\n\n| | seconds | rows a second | of {base} | processor seconds | of {base} |\n{'|---' * 6}|")
    by_clock, by_processor = (
        {name: sum(t[i] for t in times) / len(times) for name, times in took.items()} for i in (0, 1)
    )
    for name, times in took.items():
        shown = [", ".join(f"{t[0]:.1f}" for t in times), f"{rows / by_clock[name]:,.0f}"]
        shown += [f"{by_clock[base] / by_clock[name]:.3f}", ", ".join(f"{t[1]:.1f}" for t in times)]
        print("|", " | ".join([name, *shown, f"{by_processor[base] / by_processor[name]:.3f}"]), "|", flush=True)


if __name__ == "__main__":
    main()
