"""A window into LMDeploy's sampler: each row's own observer hears where its sequence is, and which token it got.

LMDeploy calls a request's `logits_processors` with the row's tokens and logits. What it passes as tokens is of no use: rows
of different lengths are padded on the left in one step and on the right in another, so that neither the last token nor the
number of tokens can be read off. The position of the random stream, though, is the sequence's length.
"""

from typing import Any, Protocol

from lmdeploy.pytorch.engine.logits_process import FusedLogitsProcessor
from lmdeploy.pytorch.engine.model_agent import agent as model_agent
from torch import Tensor


class Observer(Protocol):
    """What stands in `GenerationConfig.logits_processors`. None of its methods may raise: that would end the engine."""

    def begin(self, num_tokens: int, hidden: Tensor) -> None:
        """A step has computed `hidden`, (hidden_size,), at the last of `num_tokens` tokens, prompt and output together.

        The same number may come again, or a smaller one: LMDeploy drops steps, and samples from parts of long prompts.
        """
        ...

    def __call__(self, token_ids: Tensor, logits: Tensor) -> Tensor:
        """Return the logits, (vocab,) float32, to sample from."""
        ...

    def sampled(self, token_id: int) -> None: ...


def install(agent: Any) -> None:
    """Have this `ModelAgent` of the process sample in float32 and tell the observers.

    Logits come in the model's type, of which LMDeploy would make log-probabilities with two or three digits.
    """
    last_hidden: list[Tensor] = []
    get_logits = agent.get_logits

    def get_logits_and_remember(hidden_states: Tensor) -> Tensor:
        last_hidden[:] = [hidden_states]  # (1, rows, hidden_size), the same rows as the sampler's
        logits: Tensor = get_logits(hidden_states)
        return logits

    class ObservedSampler(FusedLogitsProcessor):  # type: ignore[misc]
        async def __call__(self, scores: Tensor) -> Any:
            inputs = self.sampling_inputs
            self.observers: list[tuple[int, Observer]] = [
                (row, observer) for row, some in enumerate(inputs.logits_processors) for observer in some or ()
            ]
            if self.observers:
                lengths = inputs.random_offsets.tolist()
                for row, observer in self.observers:
                    observer.begin(lengths[row], last_hidden[0][0, row])
            return await super().__call__(scores.float())

        def sampling(self, logits: Tensor) -> Tensor:
            token_ids: Tensor = super().sampling(logits)
            if self.observers:
                chosen = token_ids.tolist()
                for row, observer in self.observers:
                    observer.sampled(chosen[row])
            return token_ids

    agent.get_logits = get_logits_and_remember
    model_agent.FusedLogitsProcessor = ObservedSampler
