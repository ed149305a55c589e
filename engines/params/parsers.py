"""The names of the forms in which models write tool calls and reasoning: vLLM's, where it has one."""

from typing import Annotated, Literal

from engines.params.about import DEPLOY, About
from engines.params.base import Params

ToolCallParser = Literal[
    "deepseek_v3",
    "deepseek_v31",
    "deepseek_v32",
    "deepseek_v4",
    "functionary",
    "functiongemma",
    "gemma4",
    "glm4",
    "glm45",
    "glm47",
    "granite",
    "granite4",
    "hermes",
    "hunyuan_a13b",
    "jamba",
    "kimi_k2",
    "lfm2",
    "llama3_json",
    "llama4_pythonic",
    "minimax",
    "minimax_m2",
    "mistral",
    "olmo3",
    "openai",
    "phi4_mini_json",
    "pythonic",
    "qwen3_coder",
    "react",
    "seed_oss",
    "xlam",
    "none",
]
ReasoningParserName = Literal["deepseek_r1", "gemma4", "granite", "mistral", "openai_gptoss", "seed_oss", "none"]


class ParserParams(Params):
    """How the text of an answer is read. An addition to the reference's parameters."""

    tool_call_parser: Annotated[ToolCallParser | None, About(DEPLOY)] = None
    """In which form the model writes tool calls; `none` leaves them in the text. Found from the chat template unless
    given."""
    reasoning_parser: Annotated[ReasoningParserName | None, About(DEPLOY)] = None
    """How the model marks its reasoning, which then goes to `reasoning_content`: `deepseek_r1` is text in `<think>`
    tags, `openai_gptoss` a channel of its own, and so on; `none` leaves it in the text. Found from the chat template
    unless given."""
