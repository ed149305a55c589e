"""What is asked about prompts: embeddings and logprobs, from the hidden states that are computed anyway.

LMDeploy's own way to score prompts is no good beside others: whatever is computed in the same step ends with it.
"""

import logging
from collections.abc import Callable
from contextlib import aclosing

from torch import Tensor

from engines.errors import EngineFailure, TuneserveError
from engines.lmdeploy.library import Library
from engines.lmdeploy.translate import prompt_config
from engines.logs import about, current_http_request_id
from engines.sampler.sampling import token_logprobs
from engines.types import TokenLogprob

log = logging.getLogger(__name__)

ROWS = 256
"""Logits are computed for so many tokens at once."""


async def compute_prompt(
    library: Library, prompt_ids: list[int], adapter: str | None, observer: "PromptObserver"
) -> None:
    """Have all of a prompt computed, and seen. Raises what the observer failed with."""
    with library.alias(adapter) as alone:
        async with aclosing(library.infer(prompt_ids, prompt_config(observer), alone)) as steps:
            async for _ in steps:
                pass
    if observer.failure is not None:
        raise observer.failure


class PromptObserver:
    """Sees the hidden states of a prompt of which the prefix cache gives nothing; leaves the logits as they are."""

    def __init__(
        self,
        prompt_ids: list[int],
        *,
        top_logprobs: int | None = None,
        head: Callable[[Tensor], Tensor],
    ) -> None:
        """`top_logprobs` None: no logprobs are wanted. `head`: (1, tokens, hidden_size) -> (1, tokens, vocab)."""
        self._prompt_ids = prompt_ids
        self._top_logprobs = top_logprobs
        self._head = head
        self._http_request_id = current_http_request_id()
        self.last_hidden: Tensor | None = None
        """Hidden state of the prompt's last token: (hidden_size,) float32."""
        self.logprobs: list[TokenLogprob] = []
        """Log-probabilities of each prompt token but the first, where they are wanted."""
        self.failure: TuneserveError | None = None

    def begin(self, num_tokens: int, start: int, hidden: Tensor) -> None:
        if num_tokens != len(self._prompt_ids):
            return  # a step too much
        try:
            self.last_hidden = hidden[-1].float().clone()  # of a prompt in parts, the last part's counts
            if self._top_logprobs is not None:
                del self.logprobs[start:]  # it was preempted, and is computed again
                self._score(start, hidden, self._top_logprobs)
        except Exception:  # in LMDeploy's loop: it would end the engine
            with about(self._http_request_id):
                log.exception("a prompt could not be scored")
            self.failure = EngineFailure("the engine failed while it computed this prompt")

    def __call__(self, token_ids: Tensor, logits: Tensor) -> Tensor:
        return logits

    def sampled(self, token_id: int) -> None:
        pass

    def _score(self, start: int, hidden: Tensor, top_logprobs: int) -> None:
        """Each token's hidden state tells the logprobs of the one after it."""
        following = self._prompt_ids[start + 1 : start + 1 + len(hidden)]
        ids = hidden.new_tensor(following, dtype=int)
        for states, some in zip(hidden[: len(ids)].split(ROWS), ids.split(ROWS), strict=True):
            self.logprobs += token_logprobs(self._head(states[None])[0].float(), some, top_logprobs)
