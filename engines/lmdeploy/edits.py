"""What LMDeploy's sampler does not do, done to the logits before it samples: by the pt engine's code, so alike in both.

Penalties, biases, forbidden and required tokens, and structured output, one output at a time.
"""

import logging

import torch
from torch import Tensor

from engines.errors import EngineFailure, InvalidRequest, TuneserveError
from engines.logs import about
from engines.sampler.edits import edited
from engines.sampler.grammar import GrammarState, MaskWorker
from engines.sampler.row import SamplerRow
from engines.types import GenerationRequest, Sampling

log = logging.getLogger(__name__)

EDITS = (
    "min_new_tokens",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "bad_words_ids",
    "allowed_token_ids",
)
"""Fields of `Sampling` that are done here, besides `structured`."""
NEUTRAL = Sampling(max_new_tokens=0)


class OutputEdits:
    """An observer of one output, which edits its logits and follows its grammar."""

    def __init__(
        self,
        request: GenerationRequest,
        eos_token_ids: tuple[int, ...],
        vocab_size: int,
        grammar: GrammarState | None,
        masks: MaskWorker | None,
    ) -> None:
        """Raises InvalidRequest where a parameter names a token outside the vocabulary."""
        sampling = request.sampling
        self._request = request
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size
        self._compiled = grammar
        self._masks = masks
        self.stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)}
        """The tokens that end the output."""
        self._tokens: list[int] = []
        self.needed = grammar is not None or any(getattr(sampling, name) != getattr(NEUTRAL, name) for name in EDITS)
        """Whether the request asks for any edit."""
        self.failure: TuneserveError | None = None
        """Why no token could follow. What is sampled from then on means nothing."""
        self.complete_at: int | None
        """The number of tokens after which the grammar allows nothing more."""
        self._begin_anew()

    def begin(self, num_tokens: int, start: int, hidden: Tensor) -> None:
        known = num_tokens - len(self._request.prompt_ids)
        if known < len(self._tokens):  # steps were dropped
            tokens, self._tokens = self._tokens[:known], []
            self._begin_anew()
            for token in tokens:
                self.sampled(token)

    def __call__(self, token_ids: Tensor, logits: Tensor) -> Tensor:
        if self.failure is not None or self._ended:
            return logits
        try:
            masks = None if self._masks is None else self._masks.start([self._grammar]).result()
            scores = edited(logits[None], [self._row], masks if masks is None else masks.to(logits.device))
            scores = scores[0, : len(logits)]
            if bool(torch.isfinite(scores).any()):
                return scores
            message = "no token may come next: the constraints of the request exclude each other or became too complex"
            self.failure = InvalidRequest(message)
        except Exception:  # in LMDeploy's loop: it would end the engine
            with about(self._request.http_request_id):
                log.exception("the logits of a request could not be edited")
            self.failure = EngineFailure("the engine failed while it computed this request")
        return logits

    def sampled(self, token_id: int) -> None:
        if self.failure is not None or self._ended:
            return
        self._tokens.append(token_id)
        self._row.accept(token_id)
        if self._grammar is None or token_id in self.stops:
            return
        try:
            self._grammar.accept(token_id)
        except TuneserveError as error:
            self.failure = error
            return
        if self._grammar.finished:
            self.complete_at = len(self._tokens)

    def _begin_anew(self) -> None:
        self._row = SamplerRow(
            self._request.sampling, self._request.prompt_ids, self._eos_token_ids, 0, self._vocab_size
        )
        self._grammar = None if self._compiled is None else self._compiled.fork()
        self.complete_at = None

    @property
    def _ended(self) -> bool:
        """LMDeploy has begun the step after the last one before it knew."""
        return self.complete_at is not None or (bool(self._tokens) and self._tokens[-1] in self.stops)
