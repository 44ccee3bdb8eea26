"""The model that is trained: the base as it is (full), with LoRA matrices, or in 4 bits with LoRA matrices (QLoRA)."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed
from transformers.utils.import_utils import is_flash_attn_2_available

from training.settings import TrainConfig, TrainError


def load_model(base: str | Path, config: TrainConfig, adapter: Path | None = None) -> Any:
    """The model ready to be trained, its new weights decided by the seed; `adapter` is trained on in place of new ones.

    Raises TrainError naming a target that no layer has, or what QLoRA lacks.
    """
    on_gpu = torch.cuda.is_available()
    # a full run keeps its weights in float32, else small updates would be rounded away; it computes in bfloat16 too
    dtype = torch.bfloat16 if on_gpu and config.method != "full" else torch.float32
    here = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    how: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False}
    if config.packing and on_gpu:  # kernels that keep packed rows apart without a mask of tokens by tokens
        how["attn_implementation"] = "flash_attention_2" if is_flash_attn_2_available() else "flex_attention"
    if config.method == "qlora":
        how |= {"quantization_config": four_bits(dtype), "device_map": {"": here}}
    model = AutoModelForCausalLM.from_pretrained(base, **how)
    if config.method == "qlora":
        model = _quantised(model, checkpointing(config))
    else:
        model.to(here)
    set_seed(config.seed)  # decides the first weights of the adapter
    if adapter is not None:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    if config.method == "full":
        return model
    return get_peft_model(model, lora(model, config))


def checkpointing(config: TrainConfig) -> bool:
    asked = config.gradient_checkpointing
    return torch.cuda.is_available() if asked == "auto" else asked == "on"


def lora(model: Any, config: TrainConfig) -> LoraConfig:
    """LoRA as configured; every name among the targets is the end of some linear layer's."""
    targets: str | list[str] = config.targets
    if targets != "all-linear":
        targets = [t.strip() for t in config.targets.split(",") if t.strip()]
        known = sorted({name.rsplit(".", 1)[-1] for name in linear_layers(model)})
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in linear_layers(model)):
                close = difflib.get_close_matches(target, known, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise TrainError(f"targets: no linear layer is named {target!r}; {hint}there are {', '.join(known)}")
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        use_rslora=config.rslora,
        use_dora=config.dora,
        task_type="CAUSAL_LM",
    )


def linear_layers(model: Any) -> Iterator[str]:
    return (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))


def gpus() -> int:
    return torch.cuda.device_count()


def four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation; raises TrainError where bitsandbytes is missing."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise TrainError("QLoRA needs bitsandbytes; pip install bitsandbytes, or train with --method lora") from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _quantised(model: Any, checkpoints: bool) -> Any:
    """The quantised base, frozen, its norms in float32.

    An evaluation on a CPU with AVX512-bf16 repacks the 4-bit weights for a path that has no gradients, and training
    after it goes on silently with wrong ones (bitsandbytes 0.50.2); so that path is left out.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    how = {"use_gradient_checkpointing": checkpoints}
    return prepare_model_for_kbit_training(
        model, **how, **({"gradient_checkpointing_kwargs": {"use_reentrant": False}} if checkpoints else {})
    )
