"""Tokenizers built for the purpose, with the chat templates of the common families as these are shipped: no marks."""

import re
from pathlib import Path

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_SPECIAL = re.compile(r"<[|\uff5c][^<>'\"{}\s]*>|<[^<>'\"{}\s]*[|\uff5c]>|</?[a-z_]*turn[a-z_]*>|\[/?[A-Z_]+\]")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# name: template, special tokens (the first begins, the second ends a text), what ends an answer
FAMILIES = {
    "chatml": (CHATML, ["<|endoftext|>", "<|im_end|>", "<|im_start|>"], "<|im_end|>"),
    "llama3": (LLAMA3, ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"], "<|eot_id|>"),
    "gemma": (GEMMA, ["<bos>", "<end_of_turn>", "<start_of_turn>"], "<end_of_turn>"),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "</s>"),
}
# the same templates with marks, as TRL and others write them by hand
MARKED = {
    "chatml": CHATML.replace(
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}",
        "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}",
    ),
    "mistral": MISTRAL.replace(
        "{{ ' ' + m['content'] + eos_token }}",
        "{% generation %}{{ ' ' + m['content'] + eos_token }}{% endgeneration %}",
    ),
}


def shipped() -> dict[str, tuple[str, str]]:
    """Chat templates as models ship them, and as TRL marks them, by name; those that take texts, and no images."""
    folder = Path(trl.__file__).parent / "chat_templates"
    names = [p.name.removesuffix("_training.jinja") for p in sorted(folder.glob("*_training.jinja"))]
    return {
        name: tuple((folder / f"{name}{form}.jinja").read_text(encoding="utf-8") for form in ("", "_training"))
        for name in names
        if name not in ("idefics3", "llava_next", "smolvlm")
    }


def tokenizer(family: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """Bytes as tokens, the family's special tokens besides."""
    own, special, _ = FAMILIES[family]
    return of_bytes(special, template or own)


def of_template(template: str) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and what looks like a special token in a template."""
    return of_bytes(["<s>", "</s>", *sorted(set(_SPECIAL.findall(template)) - {"<s>", "</s>"})], template)


def of_bytes(special: list[str], template: str) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*special, *letters])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=special[0], eos_token=special[1])
    made.chat_template = template
    return made
