"""How tokens are chosen where a request does not say."""

from typing import Annotated, ClassVar

from pydantic import Field

from engines.params.about import ANSWERS_ONLY, BY_REQUEST, DEPLOY, EVAL, INFER, NOBODY_READS, PAGE, About
from engines.params.base import Params, Strings


class GenerationParams(Params):
    """How tokens are chosen where a request does not say."""

    starred: ClassVar = frozenset({"max_new_tokens", "stream"})

    max_new_tokens: Annotated[int | None, About(DEPLOY + PAGE + EVAL)] = Field(None, ge=1)
    """The most tokens to generate. As many as the model's context leaves room for unless given. In an evaluation it is
    for EvalScope: a benchmark of the harness says it itself."""
    temperature: Annotated[float | None, About(DEPLOY + PAGE)] = Field(None, ge=0)
    """Divides the logits before sampling: below 1 the likely tokens become likelier still; 0 always takes the
    likeliest. From the model's generation_config.json unless given."""
    top_k: Annotated[int | None, About(DEPLOY, one_run=True, not_in_training=ANSWERS_ONLY)] = Field(None, ge=0)
    """Sample among this many of the likeliest tokens; 0: among all. From generation_config.json unless given."""
    top_p: Annotated[float | None, About(DEPLOY, one_run=True, not_in_training=ANSWERS_ONLY)] = Field(None, gt=0, le=1)
    """Sample among the fewest tokens that have at least this much of the probability together. From
    generation_config.json unless given."""
    repetition_penalty: Annotated[float | None, About(DEPLOY, one_run=True, not_in_training=ANSWERS_ONLY)] = Field(
        None, gt=0
    )
    """Above 1, makes tokens that occurred in prompt or output less likely. From generation_config.json unless given."""
    num_beams: Annotated[int, About(DEPLOY, one_run=True, most=64, not_in_training=ANSWERS_ONLY)] = Field(1, ge=1)
    """Beams of a beam search; 1: no beam search."""
    stream: Annotated[bool, About(INFER, not_in_deploy=BY_REQUEST, not_in_training=NOBODY_READS)] = False
    """Show text while it is generated. A chat at the terminal does unless this is given as false; answers to a data set
    are written whole, and a request over HTTP says so itself."""
    stop_words: Annotated[Strings, About(DEPLOY, one_run=True, text=True, not_in_training=ANSWERS_ONLY)] = ()
    """Further texts that end the generation when they appear."""
    logprobs: Annotated[bool, About(INFER, not_in_deploy=BY_REQUEST, not_in_training=NOBODY_READS)] = False
    """Write the log-probability of each generated token beside the answer to a row. A request over HTTP says so
    itself."""
