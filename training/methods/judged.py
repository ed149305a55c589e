"""What methods have in common whose answers are judged: by functions, a reward model, a grader, or several of them."""

from collections.abc import Iterator

from training.params.refusal import Refusal
from training.params.rlhf import RlhfParams

JUDGES = frozenset(
    {
        "grader", "reward_funcs", "reward_model", "reward_adapters", "reward_model_revision", "reward_weights",
        "remove_unused_columns",
    }
)  # fmt: skip
"""Parameters of judges."""


def of_judges(params: RlhfParams) -> Iterator[Refusal]:
    from training.rewards import graded

    count = len([*params.reward_funcs, *filter(None, (params.reward_model, params.grader))])
    if not count:
        yield "reward_funcs", "name what judges the answers, here, as reward_model or as grader"
    elif params.reward_weights and len(params.reward_weights) != count:
        yield "reward_weights", f"there must be one for each of the {count} rewards"
    for name in ("reward_adapters", "reward_model_revision", "reward_model_type"):
        if getattr(params, name) and params.reward_model is None:
            yield name, "it belongs to reward_model, which is not given"
    if params.remove_unused_columns:
        for name in ("grader", "accuracy"):
            if name in params.reward_funcs or (name == "grader" and params.grader is not None):
                yield "remove_unused_columns", f"{name} compares with columns of the rows: leave it out"
    yield from graded.refusals(params)
