"""Parameters of GRPO and RLOO, which learn from the rewards of several answers to each prompt."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from engines.params.about import A_FILE, About
from engines.params.base import Params, Strings, listed

MOST_GENERATIONS = 64
"""Answers to a prompt that fine-tuning jobs may ask for."""
DIVIDED = "the server divides the answers of a step itself"


class GrpoParams(Params):
    """GRPO and RLOO: several answers to each prompt are generated and judged, and the better ones are learned from. An
    addition to the reference's parameters, by the names of its later versions and of TRL."""

    num_generations: Annotated[int, About(most=MOST_GENERATIONS)] = Field(8, ge=2)
    """Answers to each prompt, which are compared with one another. As many or a multiple of them are learned from at a
    time: `per_device_train_batch_size` times `steps_per_generation` is divisible by it."""
    num_generations_eval: Annotated[int | None, About(most=MOST_GENERATIONS, openai="eval_samples")] = Field(None, ge=1)
    """Answers to each prompt in an evaluation. `num_generations` unless given."""
    max_completion_length: Annotated[int, About(most=16384)] = Field(512, ge=1)
    """Tokens of each answer at most."""
    num_iterations: int = Field(1, ge=1)
    """How often each batch of answers is learned from: GRPO's mu."""
    steps_per_generation: Annotated[int | None, About(not_in_fine_tuning=DIVIDED)] = Field(None, ge=1)
    """Forward passes that the answers of one generation are divided into. `gradient_accumulation_steps` unless given,
    of which it is a multiple: with more, several steps learn from one generation."""
    epsilon: float = Field(0.2, ge=0)
    """How far the probability of a token (in RLOO: of an answer) may move before it is no longer learned from."""
    epsilon_high: float | None = Field(None, ge=0)
    """The same upwards, where it may differ: DAPO's clip-higher has 0.28. As `epsilon` unless given."""
    delta: float | None = Field(None, gt=1)
    """Upper bound of a token's ratio where the answer is worse than others (two-sided clipping). None unless given."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What rewards are divided by: their standard deviation among the answers to a prompt, or among all of a batch;
    Dr. GRPO has `none`."""
    overlong_filter: bool = False
    """Learn nothing from answers that were cut at `max_completion_length`."""
    normalize_advantages: bool = False
    """Bring what RLOO learns by to mean 0 and variance 1 in each batch."""
    reward_funcs: Annotated[Strings, About(not_in_api=A_FILE)] = ()
    """What judges answers: names of built-in functions (`accuracy`, `format`, `repetition`, `soft_overlong`), or
    functions of your own as `FILE.py:FUNCTION`, in TRL's form."""
    reward_weights: Annotated[tuple[float, ...], BeforeValidator(listed)] = ()
    """Weight of each reward, in their order: those of `reward_funcs`, then that of `reward_model`. 1 each unless
    given."""
    log_completions: bool = False
    """Write all answers with their rewards to `completions.jsonl` in the job's folder."""
