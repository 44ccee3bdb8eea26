"""Training speed on a GPU at real sizes, of random weights: tokens a second, model FLOP utilisation, peak memory.

    python -m bench.gpu                      # shapes of Llama-3.2-1B and Llama-3.1-8B, LoRA and QLoRA, packing on
    python -m bench.gpu --shapes 1b --steps 20
    python -m bench.gpu --shapes tiny --steps 8     # anywhere, without a GPU: that it runs, not how fast

Each line is a process of its own, so that its memory is its own: `ours` is training.sft.train, packed; `bare` is
transformers and peft with a loop of ten lines, rows padded; `TRL` is SFTTrainer with its defaults. All train on the
same rows, whose lengths are spread as those of instruction data are (log-normal), to the same batch size; speed is that
of the tokens of the rows, padding left out, after the first five steps, which do not count, so that there must be more
than these. FLOPs of a token are those of the matrices: 2 N forward and 2 N backward, since frozen weights have no
gradient, and those of attention; what is computed again for checkpointing is no useful work and not counted.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch

from storage.schema import message
from training.encode import Encoded, encode_rows
from training.settings import TrainConfig

# hidden, feed-forward, layers, heads, key-value heads, vocabulary, tied
SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 512, True),
    "1b": (2048, 8192, 16, 32, 8, 128_256, True),
    "8b": (4096, 14_336, 32, 32, 8, 128_256, False),
}
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}  # bf16, dense
PLANS = ("ours lora", "bare lora", "TRL lora", "ours qlora", "bare qlora", "TRL qlora")
WARM = 5  # steps that do not count: kernels are compiled, memory is claimed


def make(shape: str, folder: Path) -> None:
    """A model folder of random weights, with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hidden, inner, layers, heads, shared, vocabulary, tied = SHAPES[shape]
    special = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
    core = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}, merges=[]
        )
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|bos|>")
    fast.chat_template = (
        "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=hidden,
                intermediate_size=inner,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=shared,
                vocab_size=vocabulary,
                tie_word_embeddings=tied,
                max_position_embeddings=8192,
            )
        )
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)


def pool(longest: int, rows: int = 256) -> pl.DataFrame:
    """Rows of log-normal length, the median a quarter of the longest."""
    random = torch.Generator().manual_seed(0)
    lengths = (longest / 4 * torch.randn(rows, generator=random).mul(0.7).exp()).clamp(16, longest - 8).int().tolist()
    said = [[message("user", "q" * (n // 2)), message("assistant", "a" * (n - n // 2 - 4))] for n in lengths]
    return pl.DataFrame({"id": [f"r{i}" for i in range(rows)], "messages": said})


def encoded(folder: Path, rows: pl.DataFrame, config: TrainConfig) -> list[Encoded]:
    from training.encode import Template, load_tokenizer

    return encode_rows(Template(load_tokenizer(folder)), rows, config.max_length, "drop").encoded


def ours(folder: Path, rows: pl.DataFrame, config: TrainConfig) -> tuple[list[float], float]:
    """When each step ended, and the last loss."""
    from training.sft import train

    ends: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        facts = train(folder, rows, Path(out) / "a", config, progress=lambda *_: ends.append(time.monotonic()))
    if facts.notes:
        print(*facts.notes, file=sys.stderr)
    return ends, facts.losses[-1]


def bare(folder: Path, rows: pl.DataFrame, config: TrainConfig) -> tuple[list[float], float]:
    """transformers and peft, a loop, rows padded; precision and checkpointing as ours."""
    from training.batch import Padded, order
    from training.model import checkpointing, load_model

    model = load_model(folder, config.model_copy(update={"packing": False}))
    model.train()
    if checkpointing(config):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    found = encoded(folder, rows, config)
    drawn = order([len(e.tokens) for e in found], config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=config.learning_rate)
    ends, at_once = [], config.rows_at_once or config.batch_size
    for start in range(0, len(drawn), config.batch_size):
        for part in range(start, start + config.batch_size, at_once):
            some = [found[i] for i in drawn[part : part + at_once]]
            batch = Padded(0)([{"input_ids": e.tokens, "labels": e.labels, "row": 0} for e in some])
            given = {k: v.to(model.device) for k, v in batch.items() if k != "rows"}
            with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
                loss = model(**given, use_cache=False).loss
            (loss * at_once / config.batch_size).backward()
        optimizer.step()
        optimizer.zero_grad()
        last = float(loss)
        ends.append(time.monotonic())
    return ends, last


def trl(folder: Path, rows: pl.DataFrame, config: TrainConfig) -> tuple[list[float], float]:
    """SFTTrainer's defaults; only the batch, the steps and the rows' order are ours."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from training.batch import order
    from training.model import four_bits

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.monotonic())

    found = encoded(folder, rows, config)
    said = [[{k: m[k] for k in ("role", "content")} for m in messages] for messages in rows["messages"].to_list()]
    at_once = config.rows_at_once or config.batch_size
    on_gpu = torch.cuda.is_available()
    how: dict[str, Any] = {"dtype": torch.bfloat16 if on_gpu else torch.float32}
    if config.method == "qlora":
        how |= {"quantization_config": four_bits(how["dtype"]), "device_map": {"": "cuda:0" if on_gpu else "cpu"}}
    with tempfile.TemporaryDirectory() as out:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, **how),
            args=SFTConfig(
                output_dir=out,
                max_steps=config.optimizer_steps,
                per_device_train_batch_size=at_once,
                gradient_accumulation_steps=config.batch_size // at_once,
                train_sampling_strategy="sequential",
                max_length=config.max_length,
                use_cpu=not on_gpu,
                bf16=on_gpu,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(
                {"messages": [said[i] for i in order([len(e.tokens) for e in found], config)]}
            ),
            peft_config=LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear"),
            callbacks=[Clock()],
        )
        return ends, float(trainer.train().training_loss)


def flops(shape: str, tokens: int, squares: int) -> float:
    """Of the useful work on rows of so many tokens and so many pairs of tokens, forward and backward."""
    hidden, inner, layers, heads, shared, vocabulary, _ = SHAPES[shape]
    matrices = layers * (2 * hidden**2 + 2 * hidden**2 * shared / heads + 3 * hidden * inner) + vocabulary * hidden
    return 4 * matrices * tokens + 6 * layers * hidden * squares  # causal attention: half of 12


def one(plan: str, shape: str, folder: Path, said: argparse.Namespace) -> None:
    who, method = plan.split()
    longest = 128 if shape == "tiny" else said.max_length
    config = TrainConfig(
        optimizer_steps=said.steps,
        batch_size=16,
        rows_at_once=16 if who == "ours" else said.rows_at_once,
        method=method,
        learning_rate=2e-4,
        max_length=longest,
        packing=who == "ours",
    )
    rows = pool(longest)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    ends, loss = {"ours": ours, "bare": bare, "TRL": trl}[who](folder, rows, config)
    from training.batch import order

    lengths = [len(e.tokens) for e in encoded(folder, rows, config)]
    counted = [lengths[i] for i in order(lengths, config)][WARM * 16 :]
    seconds = ends[-1] - ends[WARM - 1]
    work = flops(shape, sum(counted), sum(n * n for n in counted)) / seconds
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else math.nan
    print("RESULT " + json.dumps({"speed": sum(counted) / seconds, "flops": work, "memory": peak, "loss": loss}))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--shapes", default="1b,8b", help="of " + ", ".join(SHAPES))
    asked.add_argument("--steps", type=int, default=25)
    asked.add_argument("--max-length", type=int, default=2048)
    asked.add_argument("--rows-at-once", type=int, default=4, help="of bare and TRL, whose padding costs memory")
    asked.add_argument("--peak", type=float, help="FLOP/s of the GPU in bf16, where it is none of " + ", ".join(PEAK))
    asked.add_argument("--one", nargs=3, metavar=("PLAN", "SHAPE", "FOLDER"), help=argparse.SUPPRESS)
    said = asked.parse_args()
    if said.steps <= WARM:
        asked.error(f"--steps {said.steps}: the first {WARM} are not counted, so take {WARM + 1} or more")
    if said.one:
        return one(said.one[0], said.one[1], Path(said.one[2]), said)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    peak = said.peak or next((p for name, p in PEAK.items() if name in card), math.nan)
    print(f"{card}, {said.steps} steps of 16 rows of up to {said.max_length} tokens, peak {peak / 1e12:.0f} TFLOP/s")
    print(f"{'shape':<6} {'plan':<12} {'tokens/s':>10} {'to bare':>8} {'to TRL':>7} {'MFU':>6} {'GiB':>7} {'loss':>8}")
    for shape in said.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            make(shape, Path(folder))
            found = {plan: _apart(plan, shape, folder) for plan in PLANS}
        for plan, told in found.items():
            if told is None:
                print(f"{shape:<6} {plan:<12} failed")
                continue
            same = [found[f"{who} {plan.split()[1]}"] for who in ("bare", "TRL")]
            to = [told["speed"] / other["speed"] if other else math.nan for other in same]
            print(
                f"{shape:<6} {plan:<12} {told['speed']:>10,.0f} {to[0]:>8.2f} {to[1]:>7.2f} "
                f"{told['flops'] / peak:>6.1%} {told['memory']:>7.1f} {told['loss']:>8.3f}"
            )


def _apart(plan: str, shape: str, folder: str) -> dict[str, float] | None:
    """A plan in a process of its own; None where it fails, such as for memory, and its last line is printed."""
    own = [a for a in sys.argv[1:]]
    ran = subprocess.run(
        [sys.executable, "-m", "bench.gpu", *own, "--one", plan, shape, folder], capture_output=True, text=True
    )
    line = next((x for x in ran.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        print(f"{plan}: {' / '.join(ran.stderr.strip().splitlines()[-2:])[:300]}", file=sys.stderr)
        return None
    return json.loads(line.removeprefix("RESULT "))


if __name__ == "__main__":
    main()
