"""Parameters of the engine that draws answers of the model in training."""

from typing import Annotated

from pydantic import Field

from engines.params.about import THE_SERVER, About
from engines.params.base import Params


class RolloutParams(Params):
    """The engine that draws the answers of PPO, GRPO, RLOO and GKD. An addition to the reference's parameters."""

    rollout_device: Annotated[str | None, Field(pattern=r"^(cpu|cuda:\d+)$"), About(not_in_api=THE_SERVER)] = None
    """Device on which answers are drawn, such as `cuda:1`. GRPO and RLOO then learn from the first answers of a step
    while the others are drawn. Unless given, that of the trainer, which takes turns with the engine."""
    rollout_max_num_seqs: Annotated[int, About(most=1024)] = Field(256, ge=1)
    """Answers that are drawn at a time. Fewer need less memory for keys and values; on a `rollout_device` of their own,
    the first are whole the earlier."""
