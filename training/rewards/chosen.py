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
    rewards = functions_of(params, params.max_completion_length)
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
    return [*rewards, *graders_of(params, tokenizer, ask)]


def functions_of(params: RlhfParams, longest: int) -> list[Reward]:
    """The functions that judge. `longest`: tokens of an answer at most. Raises InvalidRequest."""
    return [reward_named(word, longest) for word in params.reward_funcs]


def graders_of(params: RlhfParams, tokenizer: Any, ask: AskAll) -> list[Reward]:
    """The grader, where there is one. Raises InvalidRequest."""
    if params.grader is None:
        return []
    return [GraderReward(parse_grader(params.grader), ask, AnswerReader(tokenizer))]
