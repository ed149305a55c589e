"""A window into LMDeploy's sampler: each row's own observer hears where its sequence is, and which token it got.

LMDeploy calls a request's `logits_processors` with the row's tokens and logits. What it passes as tokens is of no
use: rows of different lengths are padded on the left in one step and on the right in another, so that neither the
last token nor the number of tokens can be read off. The position of the random stream, though, is the sequence's
length.
"""

from typing import Any, Protocol

from lmdeploy.pytorch.engine.logits_process import FusedLogitsProcessor
from lmdeploy.pytorch.engine.model_agent import agent as model_agent
from torch import Tensor


class Observer(Protocol):
    """What stands in `GenerationConfig.logits_processors`. None of its methods may raise: that would end the engine."""

    def begin(self, num_tokens: int, start: int, hidden: Tensor) -> None:
        """A step has computed `hidden`, (tokens, hidden_size), of the tokens from `start` on.

        `num_tokens`: prompt and output together, as far as they are known. The same number may come again, or a smaller
        one: long prompts are computed in parts, and each time LMDeploy samples; and it drops what it computed too much.
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
    computed: list[tuple[Any, Tensor]] = []
    forward = agent.async_forward

    async def forward_and_remember(inputs: Any, *arguments: Any, **options: Any) -> Any:
        output = await forward(inputs, *arguments, **options)
        computed[:] = [(inputs, output["hidden_states"][0])]
        return output

    class ObservedSampler(FusedLogitsProcessor):  # type: ignore[misc]  # LMDeploy is Any to mypy, as it is not there
        async def __call__(self, scores: Tensor) -> Any:
            self.observers: list[tuple[int, Observer]] = [
                (row, observer)
                for row, some in enumerate(self.sampling_inputs.logits_processors)
                for observer in some or ()
            ]
            inputs, hidden = computed.pop()
            if self.observers:
                lengths = self.sampling_inputs.random_offsets.tolist()
                starts = inputs.history_lengths.tolist()
                of_rows = hidden.split(inputs.seq_length.tolist())
                for row, observer in self.observers:
                    observer.begin(lengths[row], starts[row], of_rows[row])
            return await super().__call__(scores.float())

        def sampling(self, logits: Tensor) -> Tensor:
            token_ids: Tensor = super().sampling(logits)
            if self.observers:
                chosen = token_ids.tolist()
                for row, observer in self.observers:
                    observer.sampled(chosen[row])
            return token_ids

    agent.async_forward = forward_and_remember
    model_agent.FusedLogitsProcessor = ObservedSampler
