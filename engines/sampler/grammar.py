"""Constraints on outputs while they are made: which tokens may come next, found beside the forward pass."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from engines.errors import InvalidRequest, UnsupportedModel
from engines.text.grammar import parser_limits, to_llguidance
from engines.types import Structured

COMPILED_KEPT = 32
"""Clients tend to send the same few constraints again and again."""


class GrammarState:
    """How far one output has come in its grammar. Made by `GrammarCompiler.compile`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

    def accept(self, token_id: int) -> None:
        """Go on with a token that the mask allowed. Raises InvalidRequest where the grammar became too complex."""
        if not self.matcher.consume_token(token_id):
            raise InvalidRequest("The constraint on the output became too complex to follow")

    @property
    def finished(self) -> bool:
        """The output is complete: nothing but an end-of-sequence token can follow."""
        return bool(self.matcher.is_stopped()) and not self.failed

    @property
    def failed(self) -> bool:
        """The grammar became too complex: nothing can follow, and the output is not complete."""
        return bool(self.matcher.is_error())

    def fork(self) -> "GrammarState":
        """A copy that goes its own way from here."""
        return GrammarState(self.matcher.deep_copy())


class GrammarCompiler:
    """Compiles constraints for one tokenizer. May be called from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Takes about a second. `vocab_size` is the width of the logits.

        Raises UnsupportedModel, with the reason, where outputs of this tokenizer cannot be constrained.
        """
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UnsupportedModel("structured output needs a fast tokenizer, and this model has a slow one only")
        if not eos_token_ids:
            raise UnsupportedModel("structured output needs an end-of-sequence token, and this model has none")
        # Where the tokenizer knows more tokens than the model, the surplus falls off the masks below.
        width = max(vocab_size, len(tokenizer))
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=width, eos_token=list(eos_token_ids))
        except ValueError as error:
            raise UnsupportedModel(f"structured output does not work with this tokenizer: {error}") from None
        self._added_tokens = tuple(tokenizer.get_added_vocab())
        self.vocab_size = vocab_size
        self.mask_words = -(-width // 32)
        self._compiled = lru_cache(maxsize=COMPILED_KEPT)(self._compile)

    def compile(self, structured: Structured) -> GrammarState:
        """A state at the start of an output. Raises InvalidRequest where the constraint is malformed or too complex."""
        return self._compiled(structured).fork()

    def _compile(self, structured: Structured) -> GrammarState:
        grammar = to_llguidance(structured, spelled=self._added_tokens)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=parser_limits())
        if matcher.is_error():
            first_line = str(matcher.get_error()).partition("\n")[0]
            raise InvalidRequest(f"Invalid {structured.kind}: {first_line}")
        return GrammarState(matcher)


class MaskWorker:
    """Fills the masks of a whole batch in a thread of its own, which leaves the interpreter free meanwhile."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._logits_words = -(-compiler.vocab_size // 32)
        self._mask_words = compiler.mask_words
        self._executor = LLExecutor()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar-masks")

    def start(self, states: Sequence[GrammarState | None]) -> "Future[Tensor | None]":
        """The masks that `sample` takes, for one row of logits each; None where no row is constrained.

        The states must be left alone until the result is there.
        """
        return self._thread.submit(self._masks, list(states))

    def close(self) -> None:
        self._thread.shutdown()

    def _masks(self, states: list[GrammarState | None]) -> Tensor | None:
        constrained = [(state, i) for i, state in enumerate(states) if state is not None]
        if not constrained:
            return None
        masks = np.full((len(states), self._mask_words), -1, dtype=np.int32)
        matchers = [(state.matcher, i) for state, i in constrained]
        llguidance.numpy.fill_next_token_bitmask_par(self._executor, matchers, masks)
        for state, i in constrained:
            if state.failed:
                masks[i] = 0
        return torch.from_numpy(masks)[:, : self._logits_words]
