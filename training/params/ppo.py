"""Parameters of PPO, which learns from the rewards of answers that the model gives."""

from typing import Annotated

from pydantic import Field

from engines.params.about import About
from engines.params.base import Params, Strings
from engines.params.model import Revision


class PpoParams(Params):
    """PPO: answers are generated, a reward model judges them, and the judgement is learned from."""

    reward_model: Annotated[str | None, About(names="model")] = None
    """The model that judges answers, as `model`: one with a head of one output, such as `rm` trains."""
    reward_adapters: Annotated[Strings, About(names="adapter")] = ()
    """Adapter of the reward model, as `adapters`; its head goes before the model's."""
    reward_model_type: Annotated[str | None, About(text=True)] = None
    """Family of the reward model, as `model_type`."""
    reward_model_revision: Annotated[Revision | None, About(text=True)] = None
    """Branch, tag or commit of the reward model, as `model_revision`."""
    num_ppo_epochs: int = Field(4, ge=1)
    """How often each batch of answers is learned from."""
    whiten_rewards: bool = False
    """Bring the rewards of a batch to mean 0 and variance 1."""
    kl_coef: float = Field(0.05, ge=0)
    """Weight of the penalty for moving away from the reference model (KL divergence)."""
    cliprange: float = Field(0.2, gt=0)
    """How far the probability of a token may move in one update."""
    vf_coef: float = Field(0.1, ge=0)
    """Weight of the value function's loss."""
    cliprange_value: float = Field(0.2, gt=0)
    """How far the value function may move in one update."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount factor: the worth of a reward that comes one token later."""
    lam: float = Field(0.95, ge=0, le=1)
    """How far the advantage estimate looks ahead (GAE): less is steadier, more is less biased."""
    num_mini_batches: int = Field(1, ge=1)
    """Parts that a batch is divided into, with one update after each."""
    local_rollout_forward_batch_size: int = Field(64, ge=1)
    """Answers scored in one forward pass."""
    num_sample_generations: int = Field(10, ge=0)
    """How often sample answers are logged in the course of training."""
    response_length: int = Field(512, ge=1)
    """Tokens of each answer that is generated for training."""
    temperature: float = Field(0.7, gt=0)
    """Temperature of the answers that are generated for training."""
    missing_eos_penalty: float | None = Field(None, ge=0)
    """Amount taken off the reward of an answer that does not end. None unless given."""
