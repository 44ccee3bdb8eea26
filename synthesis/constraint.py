"""What an answer may look like: one of a few texts, or JSON of a schema; for models in this process, with xgrammar."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from synthesis.fingerprint import EngineError


class Constraint:
    """A grammar for one call; every answer of it is followed token by token."""

    def __init__(
        self, tokenizer: Any, ends: Sequence[int], vocabulary: int, choices: Sequence[str], schema: Any
    ) -> None:
        try:
            import xgrammar
        except ImportError:
            raise EngineError(
                "choices and JSON schemas need xgrammar: `make install-vllm`, or pip install xgrammar"
            ) from None
        self._xgrammar, self._vocabulary = xgrammar, vocabulary
        known = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=list(ends))
        compiler = xgrammar.GrammarCompiler(known, max_threads=1)
        try:
            if choices:
                rule = " | ".join(json.dumps(c, ensure_ascii=False) for c in choices)
                self._compiled = compiler.compile_grammar(f"root ::= {rule}")
            else:
                self._compiled = compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)
        except (RuntimeError, ValueError) as why:
            raise ValueError(f"the schema cannot be compiled: {' '.join(str(why).split())[:200]}") from None
        self._followed: dict[int, Any] = {}

    def begin(self) -> None:
        """Forget what was said: another group of answers begins."""
        self._followed = {}

    def mask(self, answers: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Logits of each answer's next token, those that it may not say at minus infinity."""
        bits = self._xgrammar.allocate_token_bitmask(len(answers), self._vocabulary)
        for row, i in enumerate(answers):
            if i not in self._followed:
                self._followed[i] = self._xgrammar.GrammarMatcher(self._compiled)
            self._followed[i].fill_next_token_bitmask(bits, row)
        allowed = logits.clone()
        self._xgrammar.apply_token_bitmask_inplace(allowed, bits.to(logits.device))
        return allowed

    def said(self, answer: int, token: int) -> None:
        self._followed[answer].accept_token(token)
