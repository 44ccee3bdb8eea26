"""On a GPU: tokens a second of the vLLM engine against bare vLLM, and the way from its last token to training and back.

    python -m bench.gpu_engines [--shape llama-8b|nano] [--prompts 512] [--dtype bfloat16]

The model is of Llama-3.1-8B's shape with random weights, written once to a temporary folder (16 GB); prompts are 512
tokens, outputs 256. `output` counts tokens that were written, `total` those that were read too. `nano` is the embedded
model, to try the program itself on a CPU; it says nothing about a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from flows.engines import NANO, has_card
from storage.schema import message
from synthesis.vllm_engine import VllmEngine
from training.settings import TrainConfig
from training.sft import train

READ, WRITTEN = 512, 256
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


def main() -> None:
    if sys.argv[1:2] == ["bare"]:
        return bare(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    said = argparse.ArgumentParser()
    said.add_argument("--shape", choices=["llama-8b", "nano"], default="llama-8b")
    said.add_argument("--prompts", type=int, default=512)
    said.add_argument("--dtype", default="bfloat16")
    asked = said.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = NANO if asked.shape == "nano" else random_model(place / "model")
        rows = [[message("user", text)] for text in texts(model, asked.prompts)]
        engine = VllmEngine(model, dtype=asked.dtype, context=1024)
        ids = engine._base.chat.encode(rows)
        (place / "ids.json").write_text(json.dumps(ids))
        command = [sys.executable, "-m", "bench.gpu_engines", "bare", str(model), asked.dtype, str(place / "ids.json")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        print(next(part for part in done.stdout.splitlines() if part.startswith("at once")), "by bare vLLM")
        line = next(part for part in done.stdout.splitlines() if part.startswith("bare "))
        speeds("bare LLM.generate", ids, int(line.split()[1]), float(line.split()[2]))
        engine.generate(rows[:8], max_tokens=8)  # to be there, and warm
        facts = engine._base.process.start().facts
        print(
            f"at once {facts['sequences_at_once']} {facts['tokens_at_once']} by thresher's engine (sequences, tokens)"
        )
        began = time.monotonic()
        answers = engine.generate(rows, max_tokens=WRITTEN)
        last = time.monotonic()
        speeds("thresher's engine", ids, sum(a[0].tokens for a in answers), last - began)
        hand_off(engine, model, rows, place, last)


def hand_off(engine: VllmEngine, model: Path, rows: list, place: Path, last: float) -> None:
    """From the last token to the end of the trainer's first step, and from its last to a new engine's first token."""
    engine.close()
    print(f"engine's process ended             {time.monotonic() - last:8.1f} s after its last token")
    told = [[*row, message("assistant", "PlayMusic")] for row in rows[:16]]
    frame = pl.DataFrame({"id": [str(i) for i in range(len(told))], "messages": told})
    steps: list[float] = []
    adapter = place / "adapter"
    config = TrainConfig(optimizer_steps=2, batch_size=2)
    train(model, frame, adapter, config, name="random", progress=lambda *_: steps.append(time.monotonic()))
    print(f"trainer's first optimiser step     {steps[0] - last:8.1f} s after the last token")
    view = engine.with_adapter(adapter)
    view.generate(rows[:1], max_tokens=1)
    print(f"first token with the new adapter   {time.monotonic() - steps[-1]:8.1f} s after the last step")
    engine.close()


def random_model(folder: Path) -> Path:
    """Random weights of that shape, with the embedded model's tokenizer."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(NANO / name, folder)
    torch.manual_seed(0)
    config = LlamaConfig(**LLAMA_8B, bos_token_id=1, eos_token_id=2)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def texts(model: Path, count: int) -> list[str]:
    """Different texts of some 512 tokens."""
    from synthesis.chat import load_chat

    chat, random = load_chat(model), np.random.default_rng(0)
    ids = random.integers(300, 4000, (count, READ))
    return [chat.text(row.tolist())[: READ * 4] for row in ids]


def bare(model: Path, dtype: str, prompts: Path) -> None:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from vllm import LLM, SamplingParams

    engine = LLM(str(model), dtype=dtype, max_model_len=1024, enforce_eager=not has_card())
    scheduler = engine.llm_engine.vllm_config.scheduler_config
    print(f"\nat once {scheduler.max_num_seqs} {scheduler.max_num_batched_tokens}", flush=True)
    asked = [{"prompt_token_ids": ids} for ids in json.loads(prompts.read_text())]
    engine.generate(asked[:8], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    began = time.monotonic()
    out = engine.generate(asked, SamplingParams(temperature=0, max_tokens=WRITTEN), use_tqdm=False)
    print(f"\nbare {sum(len(o.outputs[0].token_ids) for o in out)} {time.monotonic() - began:.3f}", flush=True)


def speeds(name: str, ids: list[list[int]], written: int, seconds: float) -> None:
    read = sum(map(len, ids))
    print(
        f"{name:20} {written / seconds:10,.0f} output tok/s {(read + written) / seconds:10,.0f} total tok/s", flush=True
    )


if __name__ == "__main__":
    main()
