"""The requests of Anthropic's Messages as they arrive. Unknown keys within a block or a tool have no effect."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from server.http.body import Items, RequestBody
from server.http.field_limits import GivenName, Json, JsonObject, Name, Options, Text
from server.model.tools import MAX_TOOLS
from server.openai.schema import MAX_MESSAGES, MAX_STOPS, Stop

TEXT_ONLY = ("image", "document", "search_result")
BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")


def _known_block(block: Any) -> Any:
    """Refuse by its name what this server cannot read."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind in TEXT_ONLY:
        raise ValueError(f"Blocks of type {kind!r} are not supported: this model reads text only")
    if isinstance(kind, str) and kind not in BLOCKS:
        raise ValueError(f"Blocks of type {kind[:80]!r} are not supported, only {', '.join(map(repr, BLOCKS))}")
    return block


class TextBlock(RequestBody):
    type: Literal["text"]
    text: Text


class ThinkingBlock(RequestBody):
    type: Literal["thinking"]
    thinking: Text
    signature: Text = ""
    """`server.messages.signatures`: it holds the thinking where that was not shown."""


class RedactedThinkingBlock(RequestBody):
    """Thinking that only Anthropic's servers can read: the model does not see it."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(RequestBody):
    type: Literal["tool_use"]
    id: GivenName
    name: GivenName
    input: JsonObject


ReadableText = Annotated[TextBlock, BeforeValidator(_known_block)]
Texts = Annotated[Items[ReadableText], Field(max_length=MAX_MESSAGES)]


class ToolResultBlock(RequestBody):
    type: Literal["tool_result"]
    tool_use_id: GivenName
    content: Text | Texts = ""
    is_error: bool = False


AnyBlock = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]
Block = Annotated[AnyBlock, BeforeValidator(_known_block)]
Blocks = Annotated[Items[Block], Field(max_length=MAX_MESSAGES)]


class Message(RequestBody):
    role: Literal["user", "assistant", "system"]
    content: Text | Blocks


def _known_tool(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind not in (None, "custom"):
        raise ValueError(f"Tools of type {str(kind)[:80]!r} are not supported, only those with an 'input_schema'")
    return tool


class ToolBody(RequestBody):
    type: Literal["custom"] = "custom"
    name: GivenName
    description: Text | None = None
    input_schema: JsonObject
    strict: bool = False


Tools = Annotated[Items[Annotated[ToolBody, BeforeValidator(_known_tool)]], Field(max_length=MAX_TOOLS)]


class ToolChoice(RequestBody):
    type: Literal["auto", "any", "tool", "none"]
    name: GivenName | None = None
    """Of the one tool, with type `tool`."""
    disable_parallel_tool_use: bool = False


class Thinking(RequestBody):
    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: int | None = Field(None, ge=0)
    display: Literal["summarized", "omitted"] = "summarized"
    """`summarized`: as the model writes it."""

    @property
    def is_off(self) -> bool:
        return self.type in ("disabled", "between_tools")


class OutputFormat(RequestBody):
    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(RequestBody):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class RequestMetadata(RequestBody):
    user_id: Text | None = None
    """For the client's own records."""


class CountRequest(RequestBody):
    """What the prompt is made of, and what says how an answer should look."""

    model: Name
    messages: Annotated[Items[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Text | Texts | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """The former name of `output_config.format`."""
    cache_control: Options | None = None
    """Prefixes of prompts are cached without being asked for."""

    # not supported
    container: Options | Name | None = None
    mcp_servers: Annotated[Items[Options], Field(max_length=MAX_TOOLS)] | None = None
    context_management: Options | None = None
    compaction: Options | None = None
    thread: Options | None = None

    # without effect
    speed: Name | None = None
    inference_geo: Name | None = None
    diagnostics: Options | None = None
    fallbacks: Json = None
    fallback_credit_token: Json = None
    billing_policy: Options | None = None


class MessageRequest(CountRequest):
    max_tokens: int = Field(ge=0)
    """0 computes the prompt, for the cache of prefixes, and answers nothing."""
    stop_sequences: Annotated[Items[Stop], Field(max_length=MAX_STOPS)] = Field(default_factory=list)
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    """Anthropic's ends at 1."""
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    metadata: RequestMetadata | None = None
    service_tier: Literal["auto", "standard_only"] = "auto"
    """There is one tier."""
