"""Parameters of reward models."""

from pydantic import Field

from engines.params.base import Params


class RewardModelParams(Params):
    """Reward models. An addition to the reference's parameters, by TRL's name."""

    center_rewards_coefficient: float = Field(0.0, ge=0)
    """Weight of the square of the sum of a pair's rewards, added to the loss of a reward model: rewards then lie around
    0 (Eisenstein et al. 2023); 0.01 is usual, 0: none."""
