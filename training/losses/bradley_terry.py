"""The loss of reward models, which is the number of TRL's RewardTrainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from training.data.padded import padded
from training.losses.head import Judged


@dataclass(frozen=True, slots=True)
class Paired:
    pad_token_id: int

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (2 * pairs, tokens of the longest), the chosen answers before the rejected
        ones, each behind its prompt; `margin` (pairs,)."""
        answers = [[*pair["prompt_ids"], *pair[which]] for which in ("chosen_ids", "rejected_ids") for pair in pairs]
        margins = torch.tensor([pair.get("margin", 0.0) for pair in pairs], dtype=torch.float)
        return padded(answers, self.pad_token_id) | {"margin": margins}


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """-log sigmoid(r(chosen) - r(rejected) - margin): Ouyang et al. 2022, equation 1, with the margin of Touvron et al.
    2023 (arXiv:2307.09288), equation 2."""

    center: float = 0.0
    """Weight of (r(chosen) + r(rejected))^2, which keeps rewards around 0: Eisenstein et al. 2023, arXiv:2312.09244."""

    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> Judged:
        given = {name: value for name, value in inputs.items() if name != "margin"}
        rewards = model(**given, use_cache=False).logits.squeeze(-1).float()
        chosen, rejected = rewards.chunk(2)
        loss = -logsigmoid(chosen - rejected - inputs["margin"]).mean()
        if self.center:
            loss = loss + self.center * (chosen + rejected).square().mean()
        return Judged(loss, torch.stack([chosen, rejected], dim=1))

    def measure(self, seen: Tensor) -> dict[str, float]:
        margins = seen[:, 0] - seen[:, 1]
        return {
            "accuracy": (margins > 0).float().mean().item(),
            "margin": margins.mean().item(),
            "mean_reward": seen.mean().item(),
            "min_reward": seen.min().item(),
            "max_reward": seen.max().item(),
        }
