"""A bridge to lm-eval, for benchmarks that are not ours: what a training made, on its tasks; lm-eval is optional."""

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.engines import model_folder
from flows.trained import check_base, result
from storage.store import Store, StoreError


def harness(
    store: Store, trained: str | None, model: str, tasks: str, limit: int | None = None, include: Path | None = None
) -> dict[str, dict[str, float]]:
    """Numbers of each task by metric, of the base model if nothing trained is named.

    Raises StoreError where lm-eval is not installed, or with what it said last.
    """
    if find_spec("lm_eval") is None:
        raise StoreError("lm-eval is not installed; `pip install lm-eval`, then run the same command")
    with tempfile.TemporaryDirectory() as out:
        ran = subprocess.run(
            [*command(store, trained, model, tasks, limit, include), "--output_path", out],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        found = sorted(Path(out).rglob("results_*.json"))
        if ran.returncode or not found:
            last = [line for line in ran.stderr.splitlines() if line.strip()][-2:]
            raise StoreError(f"lm-eval failed: {' / '.join(last)[:500]}")
        return metrics(json.loads(found[-1].read_text()))


def metrics(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers of a results file by task. A metric is called as lm-eval does, `exact_match,strict-match`.

    The filter is left out where there is none; how many rows were asked (`sample_len`) is no metric.
    """
    return {
        task: {
            name.removesuffix(",none"): value
            for name, value in told.items()
            if isinstance(value, int | float) and name != "sample_len"
        }
        for task, told in results["results"].items()
    }


def command(
    store: Store, trained: str | None, model: str, tasks: str, limit: int | None, include: Path | None
) -> list[str]:
    """The call of lm-eval; an adapter stands beside its base, a full run's model by itself."""
    place = f"pretrained={model_folder(model)}"
    if trained is not None:
        folder, made = store.files(trained), result(store, trained)
        if (folder / "adapter_config.json").exists():
            check_base(made, model)
            place = f"{place},peft={folder}"
        else:
            place = f"pretrained={folder}"
    call = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", place, "--tasks", tasks]
    call += ["--apply_chat_template", "--batch_size", "16"]
    call += ["--limit", str(limit)] if limit else []
    return call + (["--include_path", str(include)] if include else [])
