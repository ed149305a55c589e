"""What an endpoint has read from a request's body: the prompts, and what is wanted of their outputs."""

from dataclasses import dataclass

from engines.text.prompt import Prompt
from engines.types import Structured, ThinkingBudget
from server.model.constraint import check
from server.model.output import OutputPlan
from server.model.structured import read_constraint
from server.openai.schema import GenerationFields
from server.pools import Pools


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    prompts: list[Prompt]
    prompt_field: str
    """The field of the body that has them."""
    plan: OutputPlan
    """How each output is constrained and read."""
    n: int
    """Outputs of each prompt."""
    max_tokens: int | None
    default_max_tokens: int | None
    """Where neither the request nor the server says; None: as many as fit the context."""
    logprobs: int | None = None
    """Likeliest tokens to tell with each token; -1: all; None: not even its own logprob."""
    logprobs_field: str = "logprobs"
    prompt_logprobs: int | None = None
    scored_outputs: int = 1
    """Outputs of each prompt with which its logprobs are told."""
    thinking_budget: ThinkingBudget | None = None
    prediction_ids: list[int] | None = None
    """Tokens of what the client expects the output to be."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens beside the model's own that end an output, unless the request goes on after those."""
    starts_text: bool = False
    """The output is a text of its own, not the continuation of one."""
    hidden_entries: bool = False
    """Logprobs are also of tokens that are not shown."""


async def read_structured(body: GenerationFields, pools: Pools) -> Structured | None:
    """What `response_format` and `structured_outputs` ask for, checked; what of it cannot be enforced is told."""
    if body.response_format is None and body.structured_outputs is None:
        return None
    constraint = await pools.text.run(read_constraint, body.response_format, body.structured_outputs)
    checked = await check(constraint, pools)
    if checked is None:
        return None
    body.ignored.add(*checked.left_out)
    return checked.structured
