"""The requests of chat completions and completions as they arrive: OpenAI's fields and vLLM's extras.

Unknown fields have no effect, types are strict, ranges are OpenAI's. What is well-formed but not supported is refused
by the steps of `server.openai.pipeline`, which know the model and its engine.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from server.http.body import Items, Metadata, RequestBody
from server.http.field_limits import MAX_JSON, MAX_TEXT, GivenName, Json, JsonObject, MaxBytes, Name, Options, Text
from server.model.effort import Effort, Verbosity
from server.model.tools import MAX_TOOLS
from server.openai.inputs import Inputs
from server.openai.truncation import TruncationFields

INT64 = 2**63
MAX_STOPS = 64
"""vLLM has no limit, OpenAI 4."""
MAX_STOP = 1024
"""Characters of a stop string."""
MAX_STOPS_TOGETHER = 8192
"""Characters of all of them: the table that they are searched with has a state for each, made in a few microseconds."""
MAX_LISTED = 1024
"""Entries of `logit_bias`, `bad_words` and `stop_token_ids`."""
MAX_ALLOWED = 16_384
"""Entries of `allowed_token_ids`."""
MAX_ARGUMENTS = 20_000
"""Objects, lists and commas in a call's arguments, which templates want parsed."""
MAX_MESSAGES = 2048
"""OpenAI's."""


class StreamOptions(RequestBody):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None
    """vLLM's."""


def _without_empty(value: Any) -> Any:
    """A list without the empty strings, which stop nothing."""
    listed = [value] if isinstance(value, str) else value
    return [each for each in listed if each != ""] if isinstance(listed, list) else listed


def _not_too_long(stops: list[str]) -> list[str]:
    if (length := sum(map(len, stops))) > MAX_STOPS_TOGETHER:
        raise ValueError(f"Stop strings should have at most {MAX_STOPS_TOGETHER} characters together, not {length}")
    return stops


Stop = Annotated[str, Field(max_length=MAX_STOP)]
StopList = Annotated[Items[Stop], Field(max_length=MAX_STOPS)]
Stops = Annotated[
    StopList,
    BeforeValidator(_without_empty, json_schema_input_type=Stop | StopList),
    AfterValidator(_not_too_long),
]
TokenId = Annotated[str, Field(max_length=16)]
"""A token id as the key of an object."""
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[dict[TokenId, Bias], Field(fail_fast=True, max_length=MAX_LISTED)]


CacheSalt = Annotated[str, Field(min_length=1, max_length=256)]
"""Prompts find only those cached prefixes that prompts with the same salt, and the same key, have left."""


class GenerationFields(TruncationFields):
    """What chat completions and completions have in common."""

    model: Name
    n: int = Field(1, ge=1, le=128)
    max_tokens: int | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    presence_penalty: float = Field(0, ge=-2, le=2)
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stop: Stops | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: Json = None
    user: Name | None = None

    # vLLM's extras
    top_k: int | None = Field(None, ge=-1)
    """0 and -1: all tokens."""
    min_p: float = Field(0, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    stop_token_ids: Annotated[Items[int], Field(max_length=MAX_LISTED)] = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    prompt_logprobs: int | None = Field(None, ge=-1)
    """-1: of the whole vocabulary, as for `logprobs`."""
    echo: bool = False
    bad_words: Annotated[Items[GivenName], Field(max_length=MAX_LISTED)] = Field(default_factory=list)
    allowed_token_ids: Annotated[Items[int], Field(min_length=1, max_length=MAX_ALLOWED)] | None = None
    structured_outputs: Json = None
    priority: int = Field(0, ge=-INT64, lt=INT64)
    """Lower is sooner. Below 0 for keys with the role admin only."""
    cache_salt: CacheSalt | None = None
    guided_json: Json = None
    guided_regex: Json = None
    guided_choice: Json = None
    guided_grammar: Json = None
    logits_processors: Json = None
    use_beam_search: bool | None = None
    num_beams: int | None = Field(None, ge=1)
    length_penalty: float = 1.0
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    """Tokens are told as `token_id:123` in logprobs."""


# --- messages


Media = Annotated[dict[str, Any], MaxBytes(MAX_TEXT)]


class ContentPart(RequestBody):
    type: Literal["text", "refusal", "image_url", "input_audio", "file"]
    text: Text | None = None
    refusal: Text | None = None
    image_url: Media | None = None
    input_audio: Media | None = None
    file: Media | None = None

    @model_validator(mode="after")
    def _has_what_its_type_says(self) -> Self:
        if getattr(self, self.type) is None:
            raise ValueError(f"a part of type {self.type!r} must have {self.type!r}")
        return self


def few_values(arguments: str) -> str:
    if (signs := sum(map(arguments.count, "[{,"))) > MAX_ARGUMENTS:
        raise ValueError(f"Arguments should have at most {MAX_ARGUMENTS} objects, lists and commas, these have {signs}")
    return arguments


class FunctionCall(RequestBody):
    name: GivenName
    arguments: Annotated[str, Field(max_length=MAX_JSON), AfterValidator(few_values)] = ""


class MessageToolCall(RequestBody):
    id: Name
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(RequestBody):
    """A message of any role."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    """One of OpenAI's, `function` included, or another that the chat template takes."""
    content: Text | Annotated[Items[ContentPart], Field(max_length=MAX_MESSAGES)] | None = None
    """Null is an empty text. An assistant's message may lack it."""
    name: Name | None = None
    tool_calls: Annotated[Items[MessageToolCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Name | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    """Another name of `reasoning_content`."""
    refusal: Text | None = None
    audio: None = None
    function_call: FunctionCall | None = None
    """The deprecated form of one of `tool_calls`."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_an_empty_text(cls, message: Any) -> Any:
        if isinstance(message, dict) and "content" in message and message["content"] is None:
            return message | {"content": ""}
        return message

    @model_validator(mode="after")
    def _has_what_its_role_says(self) -> Self:
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of role 'tool' must have 'tool_call_id'")
        if self.role != "assistant":
            self._refuse(("tool_calls", "function_call", "reasoning_content", "reasoning", "refusal"))
            if self.content is None:
                raise ValueError(f"a message of role {self.role!r} must have 'content'")
        if self.role != "tool":
            self._refuse(("tool_call_id",))
        if self.role == "function" and not self.name:
            raise ValueError("a message of role 'function' must have 'name'")
        if self.tool_calls and self.function_call:
            raise ValueError("'function_call' is the deprecated form of 'tool_calls': give one of the two")
        return self

    @model_validator(mode="after")
    def _has_one_reasoning(self) -> Self:
        if self.reasoning and self.reasoning_content and self.reasoning_content != self.reasoning:
            raise ValueError("'reasoning' and 'reasoning_content' are two names of one text, and these differ")
        return self

    def _refuse(self, names: tuple[str, ...]) -> None:
        for name in names:
            if getattr(self, name):
                raise ValueError(f"a message of role {self.role!r} cannot have {name!r}")


# --- requests


class PredictedPart(RequestBody):
    type: Literal["text"]
    text: Text


class Prediction(RequestBody):
    """What the answer is expected to be."""

    type: Literal["content"]
    content: Text | Annotated[Items[PredictedPart], Field(max_length=MAX_MESSAGES)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ConversationFields(RequestBody):
    """How messages become a prompt."""

    tools: Json = None

    # vLLM's extras
    chat_template_kwargs: Options = Field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: Text | None = None
    documents: Annotated[Items[JsonObject], Field(max_length=MAX_LISTED)] | None = None
    """What templates for retrieval show the model."""


Messages = Annotated[Items[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


class ChatRequest(ConversationFields, GenerationFields):
    messages: Messages
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """Wins over `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=-1)
    tool_choice: Json = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool = True
    thinking_token_budget: int | None = Field(None, ge=-1, lt=INT64)
    """-1: no limit."""
    modalities: Annotated[Items[Name], Field(max_length=8)] | None = None
    verbosity: Verbosity | None = None
    service_tier: Name | None = None
    store: bool = False
    metadata: Metadata | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: Options | None = None
    audio: Options | None = None
    prediction: Prediction | None = None
    moderation: Options | None = None
    web_search_options: Options | None = None
    functions: Annotated[Items[JsonObject], Field(max_length=MAX_TOOLS)] | None = None
    function_call: Name | Options | None = None


class CompletionRequest(GenerationFields):
    prompt: Inputs
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=-1)
    best_of: int | None = Field(None, ge=1, le=20)
    suffix: Text | None = None
    add_special_tokens: bool = True
