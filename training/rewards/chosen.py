"""The rewards that a training's parameters choose."""

from typing import Any

from training.params.graders import parse_grader
from training.params.rlhf import RlhfParams
from training.rewards.by_name import reward_named
from training.rewards.graded import AskAll, GraderReward
from training.rewards.reading import AnswerReader
from training.rewards.reward_model import RewardModel
from training.rewards.types import Reward


def rewards_of(params: RlhfParams, tokenizer: Any, *, device: str, ask: AskAll) -> list[Reward]:
    """In the order of `reward_weights`. `tokenizer`: the policy's. `device`: where a model that judges is to be. `ask`:
    has the base model answer what graders ask.

    Raises InvalidRequest, InvalidAdapter, UnsupportedModel.
    """
    rewards: list[Reward] = [reward_named(word, params.max_completion_length) for word in params.reward_funcs]
    if params.reward_model is not None:
        judge = RewardModel.load(
            params.reward_model,
            adapters=params.reward_adapters,
            revision=params.reward_model_revision,
            token=params.hub_token,
            device=device,
            policy_tokenizer=tokenizer,
            system=params.system,
        )
        rewards.append(judge)
    if params.grader is not None:
        rewards.append(GraderReward(parse_grader(params.grader), ask, AnswerReader(tokenizer)))
    return rewards
