"""How fast training is beside bare TRL with the same settings: tokens a second, and what a run takes outside its loop.

    python -m bench.train                  # the embedded model on this machine, in some minutes
    python -m bench.train --rows 96 --steps 20 --repeats 3

One run trains the same rows, in the same order and batches, from the same first weights, for as many steps, by turns:
TRL's SFTTrainer as its documentation has it (PEFT config, rows as messages, loss on the assistant alone), and
`training.sft.train` as it is, without sharing what rows begin with, and packed. What counts is the time inside the
training loop over the tokens of the rows, padding left out. Prints the medians of all turns, and ratios to TRL; the
first step and the share outside the loop are those of the call, with everything imported. At the end `thresher train`
is run as a person would, and its own line says what a command takes from its beginning.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch

from flows.engines import NANO
from storage.schema import message
from training import sft
from training.encode import Template, load_tokenizer
from training.settings import TrainConfig

ASK = "Which of these does the request ask for: a fact, a song, the weather, a table in a restaurant?"
WORDS = "the quick brown fox jumps over a lazy dog while rain falls on old red roofs"


class Took(NamedTuple):
    loop: float  # seconds inside the training loop
    first: float  # until the first step was done
    whole: float
    losses: list[float]


def pool(rows: int, kind: str) -> pl.DataFrame:
    """Requests with one instruction before all (shared), or of their own lengths and answered at length (mixed)."""
    words = WORDS.split()
    said = []
    for i in range(rows):
        text = " ".join(words[(i * 7 + k * (i % 5 + 1)) % len(words)] for k in range(4 + (i * 37) % 60))
        shared = kind == "shared"
        asked = f"{ASK}\n{text[:80]}" if shared else text
        said.append([message("user", asked), message("assistant", "weather" if shared else text[::-1])])
    return pl.DataFrame({"id": [f"r{i}" for i in range(rows)], "messages": said})


def ours(rows: pl.DataFrame, config: TrainConfig, share: bool = True) -> Took:
    with tempfile.TemporaryDirectory() as out:
        facts = sft.train(NANO, rows, Path(out) / "adapter", config, name="nano", share=share)
    return Took(facts.in_loop, facts.first_step, facts.seconds, list(facts.losses))


def bare(rows: pl.DataFrame, config: TrainConfig) -> Took:
    """The same by TRL alone; its rows are put into the same order first, so that padding is the same."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from training.batch import order

    class Clock(TrainerCallback):
        first = 0.0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.first = self.first or time.monotonic()

    template = Template(load_tokenizer(NANO))
    lengths = [len(template.encode(i, m).tokens) for i, m in rows.select("id", "messages").iter_rows()]
    said = [[{k: m[k] for k in ("role", "content")} for m in messages] for messages in rows["messages"].to_list()]
    called, clock = time.monotonic(), Clock()
    with tempfile.TemporaryDirectory() as out:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32),
            args=SFTConfig(
                output_dir=out,
                max_steps=config.optimizer_steps,
                per_device_train_batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=round(0.05 * config.optimizer_steps),
                seed=config.seed,
                train_sampling_strategy="sequential",
                assistant_only_loss=True,
                max_length=config.max_length,
                use_cpu=not torch.cuda.is_available(),
                bf16=torch.cuda.is_available(),
                gradient_checkpointing=False,
                logging_steps=1,
                disable_tqdm=True,
                report_to="none",
                save_strategy="no",
            ),
            train_dataset=Dataset.from_dict({"messages": [said[i] for i in order(lengths, config)]}),
            processing_class=template.tokenizer,
            peft_config=LoraConfig(
                r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        began = time.monotonic()
        trainer.train()
        loop = time.monotonic() - began
        trainer.save_model(out)
        losses = [float(t["loss"]) for t in trainer.state.log_history if "loss" in t]
        return Took(loop, clock.first - called, time.monotonic() - called, losses)


def tokens(rows: pl.DataFrame, config: TrainConfig) -> int:
    from training.batch import order

    template = Template(load_tokenizer(NANO))
    lengths = [len(template.encode(i, m).tokens) for i, m in rows.select("id", "messages").iter_rows()]
    return sum(lengths[i] for i in order(lengths, config))


def command(rows: pl.DataFrame, config: TrainConfig) -> str:
    """What `thresher train` says of its own time."""
    with tempfile.TemporaryDirectory() as folder:
        file, store = Path(folder) / "rows.jsonl", ["--store", str(Path(folder) / "store")]
        said = [[{k: m[k] for k in ("role", "content")} for m in messages] for messages in rows["messages"].to_list()]
        file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in said))
        settings = ["--optimizer-steps", str(config.optimizer_steps), "--gradient-checkpointing", "off"]
        for args in (["import", str(file), "--name", "bench"], ["train", "bench", *settings]):
            call = [sys.executable, "-m", "flows.cli", *args, *store]
            ran = subprocess.run(call, capture_output=True, text=True, check=True)
        return next(line for line in (ran.stdout + ran.stderr).splitlines() if "outside the loop" in line)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", type=int, default=192)
    asked.add_argument("--steps", type=int, default=24)
    asked.add_argument("--repeats", type=int, default=3)
    said = asked.parse_args()
    config = TrainConfig(optimizer_steps=said.steps, learning_rate=2e-3, gradient_checkpointing="off")
    plans: dict[str, Any] = {
        "TRL": bare,
        "ours": ours,
        "ours, nothing shared": lambda rows, config: ours(rows, config, share=False),
        "ours, packed": lambda rows, config: ours(rows, config.model_copy(update={"packing": True})),
    }
    print(f"embedded model, LoRA, {said.steps} steps of 16 rows, {torch.get_num_threads()} threads")
    print(
        f"{'rows':<8} {'by':<22} {'tokens/s':>9} {'to TRL':>7} {'spread':>14} {'first step':>11} {'outside':>8} "
        f"{'first loss':>11} {'last loss':>10}"
    )
    for kind in ("shared", "mixed"):
        rows = pool(said.rows, kind)
        count = tokens(rows, config)
        took: dict[str, list[Took]] = {name: [] for name in plans}
        for _ in range(said.repeats):
            for name, plan in plans.items():
                took[name].append(plan(rows, config))
        for name, turns in took.items():
            ratios = [trl.loop / own.loop for trl, own in zip(took["TRL"], turns, strict=True)]
            loop, first = (statistics.median(getattr(t, what) for t in turns) for what in ("loop", "first"))
            outside = statistics.median(1 - t.loop / t.whole for t in turns)
            print(
                f"{kind:<8} {name:<22} {count / loop:>9,.0f} {statistics.median(ratios):>7.2f} "
                f"{min(ratios):>6.2f} to {max(ratios):.2f} {first:>9.1f} s {outside:>8.0%} "
                f"{turns[-1].losses[0]:>11.4f} {turns[-1].losses[-1]:>10.4f}",
                flush=True,
            )
    print(f"thresher train, shared: {command(pool(said.rows, 'shared'), config)}")


if __name__ == "__main__":
    main()
