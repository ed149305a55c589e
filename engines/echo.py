"""An engine without a model: it says the prompt's last message back, one token a step. For tests and documentation.

Everything around the model is real: queue, aborts, stop tokens, logprobs, `n`, faults. It keeps every promise of
`engines.engine.Engine`, so that what is built above can be tried in milliseconds.
"""

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from engines.adapters.folder import read_adapter
from engines.adapters.pins import max_pinned, with_pin
from engines.adapters.spec import WEIGHTS
from engines.capabilities import AdapterSupport, Capabilities
from engines.errors import (
    EngineFailure,
    EngineUnavailable,
    InvalidRequest,
    QueueFull,
    TuneserveError,
    UnsupportedParameter,
)
from engines.text.byte_level import BYTE_OF_CHARACTER
from engines.text.grammar import parser_limits, to_llguidance
from engines.text.thinking import Thinking
from engines.types import (
    EngineState,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Head,
    Health,
    PoolingRequest,
    Sampling,
    StepSizes,
    Structured,
    StructuredKind,
    TokenLogprob,
    TokenOutput,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BYTES = 256
"""Token ids below it are single bytes."""
END_OF_TEXT, IM_START, IM_END = range(BYTES, BYTES + 3)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Special tokens, in the order of their ids."""
VOCAB_SIZE = BYTES + len(SPECIALS)
HIDDEN_SIZE = 32
FORBIDDEN = -100.0
"""OpenAI's logit bias that bans a token."""


@dataclass(kw_only=True)
class EchoFaults:
    """Faults that the engine shall show. Tests change them while it runs."""

    start_delay: float = 0.0
    start_error: TuneserveError | None = None
    token_delay: float = 0.0
    """Seconds before every step, the first too."""
    die_after: int | None = None
    """The engine dies before this step (counted from 0) of a request."""
    adapter_delay: float = 0.0
    """Seconds that the loading of an adapter takes."""
    adapter_error: TuneserveError | None = None
    """Error that the loading of an adapter ends with."""


class EchoEngine:
    """Answers with the content of the last ChatML message, or with the whole prompt where there is none.

    It always takes its likeliest token, so parameters that only reshape the distribution change nothing; those that
    forbid tokens (structured output, bad words, allowed tokens, a bias of -100, a minimum length) do.

    An adapter puts its version before the answer, `name@hash: `, where no structure is asked for.

    With a head, its own or an adapter's, it classifies instead, by numbers that depend on the whole prompt.
    """

    def __init__(
        self,
        *,
        max_model_len: int = 4096,
        max_requests: int | None = None,
        max_loras: int = 8,
        head: Head | None = None,
        faults: EchoFaults | None = None,
    ) -> None:
        """With `max_requests`, more than that at once are refused as by a full queue."""
        self.faults = faults or EchoFaults()
        self._max_requests = max_requests
        self._state = EngineState.STARTING
        self._unfinished: dict[str, set[int]] = {}  # request id -> outputs that still yield
        self._adapters = _Adapters(max_loras)
        self._sizes = StepSizes()
        self._capabilities = Capabilities(
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            max_logprobs=-1,
            eos_token_ids=(IM_END, END_OF_TEXT),
            structured=frozenset(get_args(StructuredKind)),
            unsupported=frozenset({"num_beams"}),
            embeddings=True,
            head=head,
            cache_config={"block_size": "1", "num_gpu_blocks": str(max_model_len)},
            adapters=adapter_support(max_loras),
            sleep=True,
        )

    async def start(self) -> None:
        await asyncio.sleep(self.faults.start_delay)
        if self.faults.start_error is not None:
            self._state = EngineState.FAILED
            raise self.faults.start_error
        self._state = EngineState.READY

    async def stop(self) -> None:
        self._state = EngineState.STOPPED

    def die(self) -> None:
        """Behave as an engine whose process was killed: running requests fail. `start` brings it back."""
        self._state = EngineState.RESTARTING

    def fail(self) -> None:
        """Behave as an engine that no restart helps any more."""
        self._state = EngineState.FAILED

    def capabilities(self) -> Capabilities:
        if self._state is EngineState.STARTING:
            raise EngineUnavailable("The model is still loading.")
        return self._capabilities

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self._admit(request)
        unfinished = self._unfinished[request.request_id] = set(range(request.n))
        outputs = [_outputs(request, index) for index in range(request.n)]
        try:
            for step in itertools.count():
                await asyncio.sleep(self.faults.token_delay)
                self._run_step(step, request.adapter)
                self._sizes.add(len(unfinished) if step else len(request.prompt_ids))
                for index in sorted(unfinished):
                    if index not in unfinished:
                        continue  # `finish` came while an earlier output of this step was read
                    output = next(outputs[index])
                    if output.finish_reason is not None:
                        unfinished.discard(index)
                    yield output
                if not unfinished:
                    return
        finally:
            del self._unfinished[request.request_id]

    def finish(self, request_id: str, index: int) -> None:
        self._unfinished.get(request_id, set()).discard(index)

    async def pool(self, request: PoolingRequest) -> list[float]:
        self._check_prompt(request.prompt_ids)
        self._adapters.use(request.adapter)
        labels = self._num_labels(request.adapter)
        if request.task == "classify" and not labels:
            raise UnsupportedParameter("The model has no head to classify with.", param="model")
        await asyncio.sleep(self.faults.token_delay)
        self._run_step(0, request.adapter)
        seed = sum(request.prompt_ids) + sum((request.adapter or "").encode())
        values = [math.sin(1 + i * (1 + seed)) for i in range(HIDDEN_SIZE)]
        if request.task == "classify":
            return values[1 : 1 + labels]
        norm = math.sqrt(sum(value * value for value in values))
        return [value / norm for value in values]

    async def load_adapter(self, version: str, folder: Path, *, pinned: bool = False) -> None:
        self._check_ready()
        await asyncio.sleep(self.faults.adapter_delay)
        if self.faults.adapter_error is not None:
            raise self.faults.adapter_error
        self._check_ready()
        self._adapters.load(version, folder, pinned)

    async def unload_adapter(self, version: str) -> None:
        self._adapters.unload(version)

    async def sleep(self) -> None:
        if self._state is EngineState.SLEEPING:
            return
        self._check_ready()
        self._state = EngineState.SLEEPING
        while self._unfinished:
            await asyncio.sleep(0.001)

    async def wake_up(self) -> None:
        if self._state is not EngineState.SLEEPING:
            return self._check_ready()
        self._state = EngineState.READY

    def health(self) -> Health:
        return Health(self._state)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._unfinished),
            step_sizes=self._sizes.counts,
            step_tokens=self._sizes.tokens,
            adapter_slots=tuple(self._adapters.slots),
            adapter_host=tuple(self._adapters.folders),
            adapter_loads=dict(self._adapters.loads),
            adapter_evictions=dict(self._adapters.evictions),
        )

    def _admit(self, request: GenerationRequest) -> None:
        self._check_prompt(request.prompt_ids)
        self._check_ready()
        if self._max_requests is not None and len(self._unfinished) >= self._max_requests:
            raise QueueFull(f"{self._max_requests} requests are running already.")
        self._adapters.use(request.adapter)
        if self._num_labels(request.adapter):
            raise UnsupportedParameter("The model has a head that classifies, and generates no text.", param="model")

    def _num_labels(self, adapter: str | None) -> int:
        """Labels of the head that a request is answered by; 0: none, the model generates."""
        own = self._adapters.num_labels.get(adapter or "", 0)
        head = self._capabilities.head
        return own or (0 if head is None else len(head.labels))

    def _check_ready(self) -> None:
        if self._state is not EngineState.READY:
            raise EngineUnavailable(f"The engine is {self._state}.")

    def _check_prompt(self, prompt_ids: list[int]) -> None:
        if not prompt_ids or not all(0 <= token < VOCAB_SIZE for token in prompt_ids):
            raise InvalidRequest(f"A prompt is one or more token ids below {VOCAB_SIZE}.", param="prompt")

    def _run_step(self, step: int, adapter: str | None) -> None:
        if step == self.faults.die_after:
            self.die()
        if self._state is EngineState.STOPPED:
            raise EngineUnavailable("The server is shutting down.")
        if self._state not in (EngineState.READY, EngineState.SLEEPING):
            raise EngineFailure(f"The engine is {self._state}.")
        self._adapters.check(adapter)


def adapter_support(max_loras: int) -> AdapterSupport:
    """The adapters that a Llama of two layers would support."""
    linears = {"lm_head": (HIDDEN_SIZE, VOCAB_SIZE)}
    for layer in ("model.layers.0", "model.layers.1"):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linears[f"{layer}.self_attn.{name}"] = (HIDDEN_SIZE, HIDDEN_SIZE)
        for name in ("gate_proj", "up_proj"):
            linears[f"{layer}.mlp.{name}"] = (HIDDEN_SIZE, 2 * HIDDEN_SIZE)
        linears[f"{layer}.mlp.down_proj"] = (2 * HIDDEN_SIZE, HIDDEN_SIZE)
    return AdapterSupport(
        max_rank=16,
        linears=linears,
        embeddings={"model.embed_tokens": (VOCAB_SIZE, HIDDEN_SIZE)},
        replaceable=frozenset({"lm_head", "model.embed_tokens"}),
        head_inputs=HIDDEN_SIZE,
        max_pinned=max_pinned(max_loras),
    )


class _Adapters:
    """The adapters that the engine holds, and their slots. They outlive the engine's deaths."""

    def __init__(self, max_loras: int) -> None:
        self._max_loras = max_loras
        self.folders: dict[str, Path] = {}
        self.num_labels: dict[str, int] = {}  # of those with a head
        self.pinned: set[str] = set()
        self.slots: list[str] = []  # least recently used first
        self.loads: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()

    def load(self, version: str, folder: Path, pinned: bool) -> None:
        self.pinned = with_pin(self.pinned, version, pinned, num_slots=self._max_loras)
        self.folders[version] = folder
        self.num_labels[version] = _num_labels(folder)

    def unload(self, version: str) -> None:
        self.folders.pop(version, None)
        self.num_labels.pop(version, None)
        self.pinned.discard(version)
        self.loads.pop(version, None)
        self.evictions.pop(version, None)
        if version in self.slots:
            self.slots.remove(version)

    def check(self, version: str | None) -> None:
        """A request that names a version which is not there has been let down by the registry."""
        if version is not None and version not in self.folders:
            raise EngineFailure(f"The engine does not hold the adapter {version!r}.")

    def use(self, version: str | None) -> None:
        """Give a version a slot, that of the one which has been idle longest where none is free."""
        self.check(version)
        if version is None:
            return
        if version in self.slots:
            self.slots.remove(version)
        else:
            if not (self.folders[version] / WEIGHTS).is_file():
                raise EngineFailure(f"The folder of {version!r} has gone.")
            self.loads[version] += 1
            if len(self.slots) == self._max_loras:
                evicted = next(idle for idle in self.slots if idle not in self.pinned)
                self.slots.remove(evicted)
                self.evictions[evicted] += 1
        self.slots.append(version)


def _num_labels(folder: Path) -> int:
    """Labels of an adapter's head; 0 where it brings none, or cannot be read, which is told when it is used."""
    try:
        head = read_adapter(folder, adapter_support(1)).head
    except TuneserveError:
        return 0
    return 0 if head is None else len(head.labels)


def _outputs(request: GenerationRequest, index: int) -> Iterator[TokenOutput]:
    """The parts of one output, step by step."""
    sampling = request.sampling
    first = True
    for token, finish_reason in _answer(request):
        yield TokenOutput(
            index=index,
            token_ids=(token,),
            logprobs=None if sampling.logprobs is None else (_logprob(token, sampling.logprobs),),
            finish_reason=finish_reason,
            stop_token_id=token if finish_reason is FinishReason.STOP else None,
            cached_tokens=0 if first and index == 0 else None,
            queue_seconds=0.0 if first and index == 0 else None,
            prompt_logprobs=_prompt_logprobs(request) if first and index == 0 else None,
            preemptions=None if finish_reason is None else 0,
        )
        first = False


def _answer(request: GenerationRequest) -> Iterator[tuple[int, FinishReason | None]]:
    """The answer's tokens, the last of them with its finish reason."""
    sampling = request.sampling
    stops = {*sampling.stop_token_ids} | (set() if sampling.ignore_eos else {IM_END, END_OF_TEXT})
    content = _last_message(request.prompt_ids)
    if request.adapter is not None and sampling.structured is None:
        content = [*f"{request.adapter}: ".encode(), *content]
    again: Iterator[int] = itertools.cycle(content or [ord(" ")])
    wanted = again if sampling.ignore_eos else itertools.chain(content, itertools.repeat(IM_END))
    constraint = None if sampling.structured is None else _Constraint(sampling.structured)
    if constraint is not None:
        stops |= {IM_END}  # nothing can follow it
    thinking = None if sampling.thinking_budget is None else Thinking(sampling.thinking_budget, _token_bytes)
    produced: list[int] = []
    for token in wanted if thinking is None else _thoughtful(wanted, thinking):
        forbidden = stops if len(produced) < sampling.min_new_tokens else set()
        token = _likeliest(token, produced, forbidden, sampling, constraint)
        if thinking is not None:
            thinking.accept(token)
        produced.append(token)
        if constraint is not None:
            constraint.push(token)
        if token in stops:
            yield token, FinishReason.STOP
            return
        if len(produced) == sampling.max_new_tokens:
            yield token, FinishReason.LENGTH
            return
        yield token, None


def _thoughtful(wanted: Iterator[int], thinking: Thinking) -> Iterator[int]:
    """What is wanted, with the end of the reasoning where it must end."""
    for token in wanted:
        while thinking.forced is not None:
            yield thinking.forced
        yield token


def _last_message(prompt_ids: list[int]) -> list[int]:
    """The content of the last message that has ended; the whole prompt where it has no messages."""
    ends = [position for position, token in enumerate(prompt_ids) if token == IM_END]
    starts = [position for position, token in enumerate(prompt_ids[: ends[-1]]) if token == IM_START] if ends else []
    if not starts:
        return prompt_ids
    message = prompt_ids[starts[-1] + 1 : ends[-1]]
    role_end = message.index(ord("\n")) if ord("\n") in message else -1
    return message[role_end + 1 :]


def _likeliest(
    wanted: int, produced: list[int], forbidden: set[int], sampling: Sampling, constraint: "_Constraint | None"
) -> int:
    """The first candidate that nothing forbids."""
    candidates = _by_likelihood(wanted)
    if constraint is not None:
        forbidden = forbidden | constraint.forbidden()
        candidates = itertools.chain((wanted, IM_END, *b'"}]'), candidates)  # rather end than go astray
    for token in candidates:
        allowed = sampling.allowed_token_ids is None or token in sampling.allowed_token_ids
        biased = sampling.logit_bias.get(token, 0.0) <= FORBIDDEN
        if allowed and not biased and token not in forbidden and not _ends_bad_word(token, produced, sampling):
            return token
    raise InvalidRequest("Every token is forbidden.")


class _Constraint:
    """The tokens that structured output allows."""

    def __init__(self, structured: Structured) -> None:
        tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary()))
        self._matcher = LLMatcher(tokenizer, to_llguidance(structured), log_level=0, limits=parser_limits())

    def forbidden(self) -> set[int]:
        mask = self._matcher.compute_bitmask()
        return {token for token in range(VOCAB_SIZE) if not mask[token // 8] >> token % 8 & 1}

    def push(self, token: int) -> None:
        self._matcher.consume_token(token)


class _Vocabulary:
    """The tokenizer as llguidance wants it described."""

    eos_token_id = IM_END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(BYTES)), *(special.encode() for special in SPECIALS))
    special_token_ids = (END_OF_TEXT, IM_START, IM_END)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _token_bytes(token: int) -> bytes:
    return _Vocabulary.tokens[token]


def _ends_bad_word(token: int, produced: list[int], sampling: Sampling) -> bool:
    return any(tuple([*produced, token][-len(word) :]) == word for word in sampling.bad_words_ids)


def _by_likelihood(first: int) -> Iterator[int]:
    """The made-up distribution: each token upwards from `first`, around the vocabulary, is half as likely."""
    return ((first + i) % VOCAB_SIZE for i in range(VOCAB_SIZE))


def _logprob(token: int, count: int) -> TokenLogprob:
    top = itertools.islice(_by_likelihood(token), count)
    return TokenLogprob(token, math.log(0.5), tuple((other, (i + 1) * math.log(0.5)) for i, other in enumerate(top)))


def _prompt_logprobs(request: GenerationRequest) -> tuple[TokenLogprob | None, ...] | None:
    count = request.sampling.prompt_logprobs
    if count is None:
        return None
    return (None, *(replace(_logprob(token, count), rank=1) for token in request.prompt_ids[1:]))


CHAT_TEMPLATE = """\
{%- if tools %}
{{- "<|im_start|>system\\n" }}
{%- if messages[0].role == "system" %}{{ messages[0].content + "\\n\\n" }}{% endif %}
{{- "You may call functions, described within <tools></tools>:\\n<tools>" }}
{%- for tool in tools %}{{ "\\n" + tool | tojson }}{% endfor %}
{{- '\\n</tools>\\nCall one with <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == "system") %}
{{- "<|im_start|>" + ("user" if message.role == "tool" else message.role) + "\\n" }}
{%- if message.role == "tool" %}{{ "<tool_response>\\n" + message.content + "\\n</tool_response>" }}
{%- elif message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content or [] %}{{ part.text }}{% endfor %}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- "\\n<tool_call>\\n" + {"name": call.function.name, "arguments": call.function.arguments} | tojson }}
{{- "\\n</tool_call>" }}
{%- endfor %}
{{- "<|im_end|>\\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""


def echo_tokenizer(max_model_len: int = 4096) -> "PreTrainedTokenizerFast":
    """A real tokenizer: one token a byte, ChatML, tools in Hermes' format."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab=BYTE_OF_CHARACTER, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=max_model_len,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
