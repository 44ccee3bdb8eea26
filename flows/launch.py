"""One training by several processes of one node, through `accelerate launch`: one GPU each, or shares of a CPU.

Each of them reads its standard input, whose other end this process alone has: they end with it, however it ends.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import polars as pl

from flows.engines import EngineSpec
from flows.trained import Job, Told, learn, read
from storage.store import Store, StoreError
from training.settings import PreferConfig, TrainConfig, TrainError

ROOT = Path(__file__).resolve().parents[1]
_FACTS = "facts.json"
_CONFIGS = {"train": TrainConfig, "prefer": PreferConfig}


def launched(store: Store, job: Job, out: Path, place: Path, told: Told, every: float) -> Any:
    """What `flows.trained.learn` returns, done by so many processes; raises TrainError with what the first one said."""
    said = {
        "root": str(store.root),
        "kind": job.kind,
        "data": job.data,
        "base": job.base.model_dump(mode="json"),
        "config": job.config.model_dump(mode="json"),
        "out": str(out),
        "place": str(place),
        "every": every,
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    processes = job.config.processes
    with tempfile.TemporaryFile("w+") as noise:
        ran = subprocess.Popen(
            [*command(processes), json.dumps(said)],
            stdin=subprocess.PIPE,
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
            ran.stdin.close()
            ran.wait()
        if ran.returncode:
            noise.seek(0)
            last = [line for line in noise.read().splitlines() if line.strip()][-3:]
            raise TrainError(wrong or f"training by {processes} processes failed: {' / '.join(last)}")
    return _read_facts(place / _FACTS)


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
    threading.Thread(target=_end_with_parent, daemon=True).start()
    said = json.loads(sys.argv[1])
    first = os.environ.get("RANK", "0") == "0"
    config = _CONFIGS[said["kind"]].model_validate(said["config"])
    job = Job(said["kind"], said["data"], EngineSpec.model_validate(said["base"]), config)

    def tell(step: int, total: int, loss: float) -> None:
        if first:
            print(json.dumps({"step": step, "total": total, "loss": loss}), flush=True)

    place, store = Path(said["place"]), Store(Path(said["root"]))
    try:
        facts = learn(store, job, read(store, job), Path(said["out"]), place, tell, said["every"])
    except TrainError as why:
        print(json.dumps({"error": str(why)}), flush=True)
        raise SystemExit(1) from why
    if first:
        _write_facts(place / _FACTS, facts)


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written there: it returns once nobody holds the other end
    os._exit(1)


def _write_facts(path: Path, facts: Any) -> None:
    told = {f.name: getattr(facts, f.name) for f in dataclasses.fields(facts)}
    tables = {name: None if told[name] is None else told[name].to_dict(as_series=False) for name in ("curve", "seen")}
    path.write_text(json.dumps(told | tables))


def _read_facts(path: Path) -> Any:
    from training.running import Facts
    from training.watch import SEEN

    told = json.loads(path.read_text())
    told["curve"], told["notes"] = pl.DataFrame(told["curve"]), tuple(told["notes"])
    told["seen"] = None if told["seen"] is None else pl.DataFrame(told["seen"], schema=SEEN)
    return Facts(**told)


if __name__ == "__main__":
    main()
