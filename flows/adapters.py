"""What comes after a training: an adapter merged into its base, exported with a card that names its data, served."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from flows.engines import EngineSpec, model_folder
from flows.trained import base_name, check_base, result
from storage.store import Manifest, Store, StoreError
from training.settings import TrainError

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
)


def merged(store: Store, trained: str, model: str, out: Path) -> None:
    """Write the base with the adapter in its weights to a folder that is not there yet."""
    made = result(store, trained)
    adapter = _adapter(store, made)
    check_base(made, model)
    _free(out)
    from training.save import merge

    try:
        merge(model_folder(model), adapter, out)
    except TrainError:
        shutil.rmtree(out, ignore_errors=True)
        raise
    (out / "README.md").write_text(card(store, made, model, merged=True), encoding="utf-8")


def exported(store: Store, trained: str, model: str, out: Path) -> None:
    """Write adapter or model, tokenizer, chat template and model card to a folder that is not there yet."""
    made = result(store, trained)
    check_base(made, model)
    _free(out)
    shutil.copytree(store.files(trained), out)
    for name in _TOKENIZER:
        if (source := model_folder(model) / name).exists() and not (out / name).exists():
            shutil.copy(source, out / name)
    (out / "README.md").write_text(card(store, made, model, merged=False), encoding="utf-8")


def serve_command(store: Store, trained: str, model: str, name: str, port: int) -> list[str]:
    """The call that serves a training's result with vLLM under a name, OpenAI's protocol.

    Raises StoreError for an adapter that vLLM cannot serve beside its base, and says to merge it; or of another base.
    """
    made = result(store, trained)
    folder, base = store.files(trained), str(model_folder(model))
    start = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    if not (folder / "adapter_config.json").exists():
        return [*start, "--model", str(folder), "--served-model-name", name, "--port", str(port)]
    check_base(made, model)
    from synthesis.vllm_engine import RANKS

    said = json.loads((folder / "adapter_config.json").read_text())
    if said.get("use_dora"):
        raise StoreError(
            f"{name} is a DoRA adapter, which vLLM does not serve beside its base; "
            f"`thresher merge {name} FOLDER`, then serve that folder"
        )
    rank = next((r for r in RANKS if r >= int(said["r"])), None)
    if rank is None:
        raise StoreError(f"{name} has rank {said['r']}, over vLLM's {RANKS[-1]}; merge it and serve the folder")
    return [
        *[*start, "--model", base, "--port", str(port)],
        # a place more than adapters: on a CPU the bare model is answered with whatever lies in the last one
        *["--enable-lora", "--max-loras", "2", "--max-lora-rank", str(rank), "--lora-modules", f"{name}={folder}"],
        # without the head among them: vLLM's engine dies when it is asked for prompt log-probabilities
        *["--lora-target-modules", *sorted({t.rpartition(".")[-1] for t in said["target_modules"]})],
    ]


def card(store: Store, made: Manifest, model: str, merged: bool) -> str:
    """A model card that names the data by key, so that anyone with the store can find every row of it."""
    facts, rows = store.run_facts(made.id), store.manifest(made.inputs["rows"])
    config: dict[str, Any] = made.config
    library = "transformers" if merged or config.get("method") == "full" else "peft"
    names = [name for name, dataset in store.names().items() if dataset == rows.id]
    base = base_name(store, EngineSpec(model=model))
    front = [f"base_model: {base}", f"library_name: {library}", "pipeline_tag: text-generation", "tags: [thresher]"]
    load = {
        "peft": f'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "this folder")',
        "transformers": 'AutoModelForCausalLM.from_pretrained("this folder")',
    }[library]
    counts = ", ".join(f"{n:,} {what}" for what, n in made.counts.items())
    return "\n".join(
        [
            *["---", *front, "---", "", f"# {base}, tuned by Thresher ({made.step})", ""],
            *["## Data", ""],
            f"- dataset `{rows.id}`{' (' + ', '.join(names) + ')' if names else ''}, content `{rows.digest}`: {counts}",
            f"- {rows.summary or 'rows'}; `thresher show {rows.id}` lists them, `thresher explain ROW` says why each",
            *["", "## Training", ""],
            f"- key `{made.id}`, engine `{made.engines['base']}`",
            *[f"- {key.replace('_', ' ')}: {value}" for key, value in sorted(config.items()) if value is not None],
            *["", "## Result", ""],
            *[f"- {k.replace('_', ' ')}: {v:,.4f}" for k, v in facts.items() if k.startswith("final_")],
            f"- {facts.get('seconds', 0):,.1f} seconds",
            *["", "## Use", "", "```python", load, "```", ""],
        ]
    )


def _adapter(store: Store, made: Manifest) -> Path:
    folder = store.files(made.id)
    if not (folder / "adapter_config.json").exists():
        raise StoreError(f"{made.id} is a whole model already (a full run): {folder}")
    return folder


def _free(out: Path) -> None:
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise StoreError(f"{out} is there already; name another folder, or remove it")
