"""The names of the forms in which models write tool calls and reasoning: vLLM's, where it has one."""

from typing import Literal

ToolCallParser = Literal[
    "deepseek_v3",
    "deepseek_v31",
    "deepseek_v32",
    "deepseek_v4",
    "functiongemma",
    "gemma4",
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
    "seed_oss",
    "xlam",
    "none",
]
ReasoningParserName = Literal["deepseek_r1", "gemma4", "granite", "mistral", "openai_gptoss", "seed_oss", "none"]
