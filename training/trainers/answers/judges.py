"""Answers of the model in training before their judges."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from training.rewards.types import Answered, InParts, Reward
from training.rollouts.types import Rollout


class Judges:
    def __init__(self, rewards: Sequence[Reward], tokenizer: Any) -> None:
        """`tokenizer`: the policy's."""
        self._rewards = rewards
        self._tokenizer = tokenizer
        self.names = [reward.name for reward in rewards]

    def __call__(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[Rollout]) -> Tensor:
        """(answers, judges): rewards, NaN where one does not apply. `rows`: the row of data that each answers.

        Raises TuneserveError.
        """
        answered = [
            Answered(
                prompt_ids=answer.prompt_ids,
                token_ids=answer.token_ids,
                text=self._tokenizer.decode(answer.token_ids, skip_special_tokens=True),
                ended=answer.ended,
                item=json.loads(row["item"]),
            )
            for row, answer in zip(rows, answers, strict=True)
        ]
        columns = [[float("nan") if each is None else each for each in judge(answered)] for judge in self._rewards]
        return torch.tensor(columns).reshape(len(columns), len(answers)).T

    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What they say beside their rewards, of the answers that they judged last: by name, a sum and a number."""
        found = {
            name: each for judge in self._rewards if isinstance(judge, InParts) for name, each in judge.parts().items()
        }
        return {name: mean(torch.tensor(each)) for name, each in found.items()}


def mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of what is no NaN, and the number of these."""
    return values.nansum(), (~values.isnan()).sum()
