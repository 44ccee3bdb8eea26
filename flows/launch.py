"""One training by several processes of one node, through `accelerate launch`: one GPU each, or shares of a CPU."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from flows.engines import EngineSpec, model_folder
from storage.store import Store, StoreError
from training.settings import TrainConfig, TrainError

ROOT = Path(__file__).resolve().parents[1]
_FACTS = "facts.json"


def launched(
    store: Store,
    rows: str,
    base: EngineSpec,
    config: TrainConfig,
    out: Path,
    place: Path,
    told: Callable[[int, int, float], None],
    processes: int,
    every: float,
) -> Any:
    """What `training.sft.train` returns, done by so many processes; raises StoreError with what the first one said."""
    from flows.training import base_name
    from training.sft import TrainFacts
    from training.watch import SEEN

    said = {
        "root": str(store.root),
        "rows": rows,
        "base": str(model_folder(base.model)),
        "name": base_name(base),
        "config": config.model_dump(mode="json"),
        "out": str(out),
        "place": str(place),
        "every": every,
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+") as noise:
        ran = subprocess.Popen(
            [*command(processes), json.dumps(said)],
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        wrong = None
        try:
            for line in ran.stdout:
                if line.startswith('{"step"'):
                    at = json.loads(line)
                    told(at["step"], at["total"], at["loss"])
                elif line.startswith('{"error"'):
                    wrong = wrong or json.loads(line)["error"]
        except BaseException:
            ran.terminate()
            raise
        finally:
            ran.wait()
        if ran.returncode:
            noise.seek(0)
            last = [line for line in noise.read().splitlines() if line.strip()][-3:]
            raise StoreError(wrong or f"training by {processes} processes failed: {' / '.join(last)}")
    facts = json.loads((place / _FACTS).read_text())
    facts["seen"] = pl.DataFrame(facts["seen"], schema=SEEN, orient="row")
    facts["losses"], facts["notes"] = tuple(facts["losses"]), tuple(facts["notes"])
    return TrainFacts(**facts)


def command(processes: int) -> list[str]:
    """The call of accelerate, without a config file of the user's to depend on."""
    from training.model import gpus

    if (there := gpus()) and processes > there:
        raise StoreError(f"{processes} processes need as many GPUs, and this machine has {there}")
    # its --cpu starts one process whatever number is asked for; --multi_gpu is torchrun, which needs no GPU
    how = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--dynamo_backend", "no"]
    how += ["--mixed_precision", "bf16" if there else "no", "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *how, "-m", "flows.launch"]


def main() -> None:
    """One of the processes; the first one tells of the steps, writes, and says what went wrong."""
    from training.sft import train

    said = json.loads(sys.argv[1])
    first = os.environ.get("RANK", "0") == "0"
    live = Store(Path(said["root"])).read(said["rows"], ["id", "messages", "drop_reason"])

    def tell(step: int, total: int, loss: float) -> None:
        if first:
            print(json.dumps({"step": step, "total": total, "loss": loss}), flush=True)

    try:
        facts = train(
            Path(said["base"]),
            live.filter(pl.col("drop_reason").is_null()),
            Path(said["out"]),
            TrainConfig.model_validate(said["config"]),
            name=said["name"],
            progress=tell,
            checkpoints=Path(said["place"]),
            every=said["every"],
        )
    except TrainError as why:
        print(json.dumps({"error": str(why)}), flush=True)
        raise SystemExit(1) from why
    if first:
        seen = facts.seen.rows()
        told = {f.name: getattr(facts, f.name) for f in dataclasses.fields(facts) if f.name != "seen"}
        (Path(said["place"]) / _FACTS).write_text(json.dumps({**told, "seen": seen}))


if __name__ == "__main__":
    main()
