"""Data that crosses the engine boundary: plain, immutable, and free of torch.

An engine deals in token ids only. Text is made of them above the engine, once for all engines, in
`engines/text/output_text.py`.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import msgspec

StructuredKind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]

LOWEST_LOGPROB = -9999.0
"""OpenAI's value for tokens that are all but impossible; JSON has no infinity."""


class FinishReason(StrEnum):
    STOP = "stop"
    """An end-of-sequence token or a stop token id (or, above the engine, a stop string)."""
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Structured:
    """A constraint on the output, enforced token by token."""

    kind: StructuredKind
    value: str
    """The JSON text of a schema ("json_schema") or of a list of strings ("choice"), a regular expression ("regex"),
    a grammar in Lark or GBNF syntax ("grammar"), or "" ("json_object")."""
    lenient: bool = False
    """Leave out what cannot be enforced of a schema, instead of refusing it."""
    rules: str = ""
    """A grammar in Lark for JSON of this kind with white space between its parts, where `grammar_check` made one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingBudget:
    """The most tokens of reasoning before an answer, and how the model marks it. Once they are used up, `end_ids` come
    in place of the model's choice, and the answer goes on."""

    tokens: int
    """Without those of the tags."""
    start: str
    """Tag that opens the reasoning, at the beginning of the output."""
    end: str
    """Tag that closes it."""
    end_ids: tuple[int, ...]
    """Tokens of `end`."""
    is_open: bool
    """The prompt opened it: the output begins with reasoning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The choice of tokens and the end of an output. Every default is neutral: it changes nothing."""

    max_new_tokens: int
    min_new_tokens: int = 0
    """End-of-sequence and stop tokens are forbidden before this many tokens."""
    temperature: float = 1.0
    """0: greedy."""
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Penalty over prompt and output (Keskar et al. 2019, CTRL, section 4.1)."""
    presence_penalty: float = 0.0
    """Penalty over the output only, as `frequency_penalty` (OpenAI)."""
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Token sequences that must not appear in the output."""
    allowed_token_ids: tuple[int, ...] | None = None
    stop_token_ids: tuple[int, ...] = ()
    """End the generation, besides the model's end-of-sequence tokens."""
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    """None: no logprobs; k: those of the sampled token and of the k likeliest, in the model's own distribution:
    temperature 1, before penalties, bias, constraints and filters."""
    prompt_logprobs: int | None = None
    """The same for every prompt token but the first."""
    structured: Structured | None = None
    thinking_budget: ThinkingBudget | None = None
    num_beams: int = 1
    """More than 1: beam search; `n` then is at most `num_beams`, and outputs come when the search has ended."""
    length_penalty: float = 1.0
    """Beam scores are divided by length ** length_penalty."""


BATCH_PRIORITY = 1 << 20
"""Priority of requests that nobody waits for, such as those of batches: all others go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    request_id: str
    prompt_ids: list[int]
    sampling: Sampling
    n: int = 1
    """Independent outputs of one prompt; the engine computes the prompt once. With a seed, output i uses seed + i."""
    adapter: str | None = None
    """`name@version`, as the registry resolved it; None: the base model."""
    priority: int = 0
    """Lower is sooner; equal priorities in order of arrival."""
    share: str | None = None
    """Name of the client. Requests of one share wait in order, and the shares get tokens by their weights."""
    weight: float = 1.0
    """A share of weight 2 gets twice as many tokens as one of weight 1 where both wait."""
    cache_salt: str | None = None
    """Requests find only those prefixes in the cache that requests of the same salt have left there."""
    prediction_ids: list[int] | None = None
    """Tokens of what the client expects the output to be; it comes faster where it is."""
    http_request_id: str | None = None
    """The `x-request-id` that it was asked under, for logs. Clients choose it: it need not be unique."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their logprobs, best first."""
    rank: int | None = None
    """Its place among all tokens, 1 for the likeliest. Engines need to tell it of prompt tokens only."""


class TokenOutput(msgspec.Struct, frozen=True, kw_only=True, array_like=True, omit_defaults=True):
    """The part of one output that a step adds. The last part of each output, and only it, has a finish reason."""

    index: int = 0
    """Index of the output among the n of its request."""
    token_ids: tuple[int, ...] = ()
    """The new tokens. A stop token that ended the output is the last of them."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each token of `token_ids`, where the request asked for them."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The stop token that ended the output."""
    cached_tokens: int | None = None
    """Prompt tokens that the prefix cache gave. On the first output of a request only."""
    queue_seconds: float | None = None
    """Seconds that the request waited for its first step. On the first output of a request only."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """One for each prompt token, None for the first. On the first output of a request only, where asked for."""
    preemptions: int | None = None
    """How often this output was put back to make room. On its last part only, where the engine can tell."""
    accepted_prediction_tokens: int = 0
    """How many more tokens of the request's prediction were tried, and are in the output."""
    rejected_prediction_tokens: int = 0
    """How many more were tried, and are not in it; below 0 where some came after all."""


ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
"""What the numbers of a head mean, as transformers' configurations call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A head that classifies a text, where a causal language model has the one that predicts tokens."""

    labels: tuple[str, ...]
    """Names of its classes; a reward model has one."""
    problem_type: ProblemType | None = None
    """None where nothing says it."""
    padding: int | None = None
    """Token that transformers passes over at the end of a text: the head judges by the one before it."""

    def read(self, ids: list[int]) -> list[int]:
        """The tokens of a text up to the one that the head judges by."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self.padding:
            end -= 1
        return ids[:end]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingRequest:
    """Asks for the model's numbers after the last token of a prompt."""

    request_id: str
    prompt_ids: list[int]
    task: Literal["embed", "classify"] = "embed"
    """`embed`: the hidden state, of length one; `classify`: the logits of the head, one for each label."""
    adapter: str | None = None
    priority: int = 0
    share: str | None = None
    weight: float = 1.0
    cache_salt: str | None = None
    http_request_id: str | None = None
    """The `x-request-id` that it was asked under, for logs."""


class EngineState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    """The engine died and is being started again."""
    SLEEPING = "sleeping"
    """The engine has given up its memory for a while, as it was asked to."""
    STOPPED = "stopped"
    FAILED = "failed"
    """The engine cannot run; `Health.detail` says why."""


@dataclass(frozen=True, slots=True)
class Health:
    state: EngineState
    detail: str = ""


STEP_SIZES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class StepSizes:
    """Counts steps by the tokens that they compute."""

    def __init__(self) -> None:
        self.tokens = 0
        self._counts: Counter[int] = Counter()

    def add(self, tokens: int) -> None:
        at = bisect_left(STEP_SIZES, tokens)
        self._counts[STEP_SIZES[at] if at < len(STEP_SIZES) else 0] += 1
        self.tokens += tokens

    @property
    def counts(self) -> dict[int, int]:
        return dict(self._counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Gauges as of the last step, and counters since the engine was created (they survive its restarts)."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    """0 to 1."""
    prefix_cache_queries: int = 0
    """Prompt tokens that were looked up in the prefix cache."""
    prefix_cache_hits: int = 0
    preemptions: int = 0
    waiting_for: dict[str, int] = field(default_factory=dict)
    """Reason -> how many of `waiting` wait for something else than room, where the engine can tell: "adapter",
    "constraint" (it is being compiled), "prefix" (another computes what their prompts have in common), "share" (others
    have had less)."""
    step_sizes: dict[int, int] = field(default_factory=dict)
    """Steps by the tokens they computed: the lowest of STEP_SIZES that holds them -> number of steps; 0: more."""
    step_tokens: int = 0
    """Tokens that those steps computed."""
    spec_drafts: int = 0
    """Guesses at several tokens that steps computed, beside those that were certain."""
    spec_draft_tokens: int = 0
    """Tokens of those guesses."""
    spec_accepted: dict[int, int] = field(default_factory=dict)
    """Place in a guess -> number of guesses that were right there, and before it."""
    adapter_slots: tuple[str, ...] = ()
    """Versions whose weights are where the engine computes with them."""
    adapter_host: tuple[str, ...] = ()
    """Versions whose weights are in host memory."""
    adapter_loads: dict[str, int] = field(default_factory=dict)
    """Version -> number of copies into a slot since it was loaded."""
    adapter_evictions: dict[str, int] = field(default_factory=dict)
    """Version -> number of times it had to give its slot to another since it was loaded."""
    steps: int = 0
    """Steps since the start, where the engine counts them: while there is work, they show that it goes on."""
    restarts: dict[str, int] = field(default_factory=dict)
    """Why its process was started again -> how often."""
    task_failures: dict[str, int] = field(default_factory=dict)
    """Background task of its supervision -> number of times it failed and began again."""
