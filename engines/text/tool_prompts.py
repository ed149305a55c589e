"""How a model is told of tools, and of what they return, where that is not left to its chat template: by name
(`tools_prompt`), or in Hermes's form where a template knows no tools.

A chat template holds the name in itself, in a comment, so that what is trained with it is served with it.
"""

# ruff: noqa: RUF001  # Chinese has commas of its own

import re
from dataclasses import dataclass

from engines.text.tool_families import GLM4, HERMES, REACT
from engines.text.tool_syntax import ToolFormat

_COMMENT = re.compile(r"\{# tools_prompt: (\w+) #\}\n")


@dataclass(frozen=True, slots=True)
class ToolPrompt:
    form: ToolFormat
    """In which calls are asked for, unless the model has one of its own."""
    instructions: str
    """With {tools}, each described by `tool`, {names}, {example}, a call, and {where} results are told."""
    result: str
    """With {result}."""
    where: str = ""
    tool: str = "{tool}"
    """With {name} and {tool}, its description as a line of JSON."""


PLAIN = ToolPrompt(
    HERMES,
    """You can call functions to help the user. The functions, each described by a line of JSON:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments in this form, and nothing else:
{example}
The result of each call is then given to you{where}. Call a function only where it helps to answer; otherwise answer in
plain text.""",
    "<tool_response>\n{result}\n</tool_response>",
    " within <tool_response></tool_response> tags",
)
REACT_EN = ToolPrompt(
    REACT,
    """You have tools that help you to answer. Each line describes one of them in JSON:
{tools}

Work in steps of this form:
Thought: what you know so far, and what you need next
Action: the name of one tool: {names}
Action Input: its arguments, as a JSON object
Stop there. The next message brings the result, as `Observation:`. Take as many steps as you need, and end with:
Thought: why you can answer now
Final Answer: your answer""",
    "Observation: {result}",
)
REACT_ZH = ToolPrompt(
    REACT,
    """你有一些工具可以帮助你回答问题。下面每一行用 JSON 描述一个工具：
{tools}

请按以下格式一步一步进行：
Thought: 目前已知的情况，以及下一步需要什么
Action: 一个工具的名称，可选：{names}
Action Input: 该工具的参数，写成 JSON 对象
写到这里请停下，下一条消息会以 `Observation:` 给出结果。可以重复多步，最后以此结束：
Thought: 为什么现在可以回答
Final Answer: 你的回答""",
    "Observation: {result}",
)
TOOLBENCH = ToolPrompt(
    REACT,
    """You handle a task by calling functions, one step at a time. Each line describes one of them in JSON:
{tools}

Every step has this form:
Thought: how things stand and what comes next, in a few short sentences
Action: the name of one function: {names}
Action Input: its arguments, as a JSON object
Stop there. The next message brings the result, as `Observation:`. What a call has changed stays changed. To try several
things, try one in each step.

End with a call of the function Finish where there is one: with the whole answer to the user, or to give up where calls
keep failing. Where there is none, end with:
Final Answer: your answer""",
    "Observation: {result}",
)
GLM4_ZH = ToolPrompt(
    GLM4,
    """# 可用工具

{tools}

需要调用工具时，先单独一行写出工具的名称，再从下一行开始把参数写成一个 JSON 对象，不要写别的内容：
{example}
写完参数后请停下，工具的结果会在下一条消息中给出。不需要工具时，请直接回答。""",
    "<|observation|>\n{result}",
    tool="## {name}\n\n{tool}",
)
PROMPTS = {"glm4": GLM4_ZH, "hermes": PLAIN, "react_en": REACT_EN, "react_zh": REACT_ZH, "toolbench": TOOLBENCH}
"""Those that `engines.params.template.TOOLS_PROMPTS` names."""


def with_tools_prompt(template: str, name: str) -> str:
    """The chat template, of which tools are told in this way."""
    comment = f"{{# tools_prompt: {name} #}}\n"  # the line break goes with it: `trim_blocks` is on
    return _COMMENT.sub(comment, template, count=1) if _COMMENT.search(template) else comment + template


def tools_prompt_of(template: str) -> str | None:
    """The name that a chat template holds; None where it tells of tools itself."""
    found = _COMMENT.search(template)
    return found[1] if found and found[1] in PROMPTS else None
