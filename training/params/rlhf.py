"""Teaching a model by preferences and rewards."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from engines.params.about import About
from engines.params.model import Revision
from training.params.gkd import GkdParams
from training.params.grader import GraderParams
from training.params.grpo import GrpoParams
from training.params.ppo import PpoParams
from training.params.reference import ReferenceParams
from training.params.response_format import ResponseFormatParams
from training.params.rm import RewardModelParams
from training.params.rollouts import RolloutParams
from training.params.sft import SftParams


class RlhfParams(
    ResponseFormatParams,
    GraderParams,
    ReferenceParams,
    RewardModelParams,
    GrpoParams,
    PpoParams,
    GkdParams,
    RolloutParams,
    SftParams,
):
    """Preference and reward training."""

    starred: ClassVar = frozenset({"rlhf_type", "beta", "rpo_alpha"})

    rlhf_type: Annotated[
        Literal["dpo", "ipo", "orpo", "simpo", "kto", "cpo", "rm", "ppo", "grpo", "rloo", "gkd"],
        About(not_in_fine_tuning="say it in method.type"),
    ]
    """The algorithm: `kto` learns from single good and bad answers, `ppo`, `grpo` and `rloo` from rewards of answers
    that the model gives while it learns, `gkd` from a larger model, the others from pairs of answers; `rm` trains a
    reward model."""
    ref_model: Annotated[str | None, About(names="model")] = None
    """The model that the trained one is compared with, as `model`. What training started from unless given."""
    ref_model_type: Annotated[str | None, About(text=True)] = None
    """Family of the reference model, as `model_type`."""
    ref_model_revision: Annotated[Revision | None, About(text=True)] = None
    """Branch, tag or commit of the reference model, as `model_revision`."""
    beta: Annotated[float | None, About(openai="beta")] = Field(None, ge=0)
    """How strongly the model is held to the reference model; in SimPO, the scale of the reward; in GKD, the divergence
    from the teacher that is learned: 0 the forward one, 1 the reverse one, between them a mixture. 2.0 for simpo, 0.5
    for gkd, 0.04 for grpo, 0.05 for rloo and 0.1 for the others unless given. In grpo and rloo, 0 does without a
    reference."""
    label_smoothing: float = Field(0.0, ge=0, le=0.5)
    """The part of the preferences that is taken to be wrong, in DPO, CPO and SimPO."""
    rpo_alpha: float = Field(1.0, ge=0)
    """Weight of the chosen answers' own loss, added to DPO's."""
    cpo_alpha: float = Field(1.0, ge=0)
    """Weight of the chosen answers' own loss, added to that of CPO and SimPO. SimPO's paper has none: 0."""
    simpo_gamma: float = Field(1.0, ge=0)
    """Target margin in SimPO: how far the chosen answer's reward is to exceed the other's; 0.5 to 1.5 is usual."""
    desirable_weight: Annotated[float, About(openai="desirable_weight")] = Field(1.0, ge=0)
    """Weight of good answers in KTO."""
    undesirable_weight: Annotated[float, About(openai="undesirable_weight")] = Field(1.0, ge=0)
    """Weight of bad answers in KTO."""

    @property
    def method(self) -> str:
        return self.rlhf_type
