"""The requests of responses as they arrive: OpenAI's fields, and those of vLLM's that say how tokens are chosen."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from server.http.body import Items, Metadata, RequestBody
from server.http.field_limits import Json, Name, Options, Text
from server.openai.schema import INT64, CacheSalt, LogitBias, Stops, StreamOptions
from server.responses.items import Id, Input

Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
"""What more an answer may include. What comes of tools and images has no effect here, where there are none."""


class TextFields(RequestBody):
    format: Json = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningFields(RequestBody):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """The name that `summary` had before."""


class ConversationFields(RequestBody):
    id: Id


class PromptFields(RequestBody):
    """What makes the prompt of a response: the same where it is answered and where it is counted."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": [name]} for name in ("input", "previous_response_id", "conversation")]
        }
    )

    input: Input | None = None
    instructions: Text | None = None
    previous_response_id: Id | None = None
    conversation: Id | ConversationFields | None = None
    tools: Json = None
    tool_choice: Json = None
    parallel_tool_calls: bool | None = None
    text: TextFields = Field(default_factory=TextFields)
    reasoning: ReasoningFields = Field(default_factory=ReasoningFields)
    truncation: Literal["auto", "disabled"] = "disabled"

    # vLLM's extras
    chat_template_kwargs: Options = Field(default_factory=dict)

    @property
    def conversation_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, ConversationFields) else self.conversation

    @property
    def summary(self) -> str | None:
        """The summary of the reasoning that is asked for."""
        return self.reasoning.summary or self.reasoning.generate_summary


class CountedRequest(PromptFields):
    model: Name | None = None
    """The served one unless given."""


class ResponsesRequest(PromptFields):
    model: Name
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Annotated[Items[Included], Field(max_length=16)] = Field(default_factory=list)
    max_tool_calls: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    store: bool | None = None
    background: bool = False
    metadata: Metadata = Field(default_factory=dict)
    user: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: Options | None = None
    service_tier: Name | None = None
    prompt: Options | None = None
    moderation: Options | None = None
    context_management: Json = None

    # vLLM's extras
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = None
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stop: Stops | None = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    structured_outputs: Json = None
    priority: int | None = Field(None, ge=-INT64, lt=INT64)
    cache_salt: CacheSalt | None = None
