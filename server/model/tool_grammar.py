"""The one constraint on an answer, from everything that asks for one: tools that must be called, a response format,
reasoning that comes first."""

from typing import Any

from engines.errors import InvalidRequest
from engines.text.grammar import json_options, lark_rule, lark_string, schema_rules, schema_text, to_lark_rule
from engines.text.reasoning_formats import ReasoningFormat
from engines.text.tool_syntax import Literals, Tags, ToolFormat
from engines.types import Structured
from server.model.constraint import Constraint
from server.model.lark_writer import LarkWriter
from server.model.literal_grammar import LiteralRules
from server.model.tagged_grammar import TaggedRules
from server.model.tools import Tool, ToolRequest

MAX_CALLS = 16
"""Most calls of one constrained answer: a weak model that must call and may call again would not stop."""


def constrain(
    tools: ToolRequest,
    form: ToolFormat | None,
    structured: Structured | None,
    reasoning: ReasoningFormat | None,
    *,
    reasoning_open: bool,
) -> Constraint | None:
    """Return what the engine has to enforce, to be checked; None for free text and for `structured` alone.

    Calls that must be made (and, where the start of a call is a token of its own, calls of strict tools that may be
    made) follow their tools' schemas. A response format binds the content, so in mode "auto" the answer is either.
    `reasoning`: the block that may come, or with `reasoning_open` must come, first.
    """
    plain = _body(tools, form, structured, reasoning, spread=False)
    if plain is None or (reasoning is None and tools.mode == "none"):
        return None
    start, thinking = _reasoning_rules(reasoning, reasoning_open)
    spread = _body(tools, form, structured, reasoning, spread=True)
    grammar, plainer = (
        Structured(kind="grammar", value="\n".join([f"start: {start}body", *thinking, *(body or [])]))
        for body in (spread, plain)
    )
    if tools.mode == "none":
        return Constraint(grammar, "response_format", plainer)
    return Constraint(grammar, "tools", plainer, tuple(map(_arguments, tools.callable)))


def _body(
    tools: ToolRequest,
    form: ToolFormat | None,
    structured: Structured | None,
    reasoning: ReasoningFormat | None,
    *,
    spread: bool,
) -> list[str] | None:
    """`spread`: arguments may be laid out in lines."""
    begin = LarkWriter(reasoning.token_ids).text(reasoning.answer) if reasoning else ""
    answer = [] if structured is None else [f"answer: {begin} {to_lark_rule(structured)}"]
    if form is None or tools.mode == "none":
        return ["body: answer", *answer] if answer else None
    if tools.mode == "required":
        return ["body: calls", *_call_rules(tools, form, spread)]
    if answer:
        return ["body: answer | calls", *answer, *_call_rules(tools, form, spread)]
    if any(tool.strict for tool in tools.tools) and form.start in form.token_ids:
        # Free text never contains the start token, so whatever begins with it is a call.
        return ["body: TEXT? calls?", r"TEXT: /(.|\n)+/", *_call_rules(tools, form, spread, marked=True)]
    return None


def _call_rules(tools: ToolRequest, form: ToolFormat, spread: bool, *, marked: bool = False) -> list[str]:
    """Rules for `calls`; `marked`: each starts with the marker even in a form where it may be left out."""
    names = [f"call_{index}" for index in range(len(tools.callable))]
    writer = LarkWriter(form.token_ids)
    text = writer.text
    first, last = text(form.first), text(form.last)
    if marked and not (form.first + form.before).startswith(form.start):
        first = f"{text(form.start)} {first}"
    more = ""
    if tools.parallel and form.separator is not None:
        more = f"({text(form.separator)} call){{0,{MAX_CALLS - 1}}}"
    rules = [f"calls: {first} call {more} {last}", f"call: {' | '.join(names)}"]
    for name, tool in zip(names, tools.callable, strict=True):
        before, after = text(form.before + tool.name + form.between), text(form.after)
        rules.append(f"{name}: {before} {name}_arguments {after}")
        rules += _argument_rules(tool, form, writer, f"{name}_arguments", spread)
    return rules


def _argument_rules(tool: Tool, form: ToolFormat, writer: LarkWriter, name: str, spread: bool) -> list[str]:
    def value_rule(schema: dict[str, Any]) -> str:
        rules = schema_rules(schema, json_options(lenient=not tool.strict)) if spread else None
        return f"%json {_json_schema(tool, schema)}" if rules is None else lark_rule(rules)

    if isinstance(form.arguments, Tags):
        return TaggedRules(tool, form.arguments, writer, value_rule, name).rules()
    if isinstance(form.arguments, Literals):
        return LiteralRules(tool, form.arguments, writer, name).rules()
    return [f"{name}: {value_rule(tool.parameters)}"]


def _json_schema(tool: Tool, schema: dict[str, Any]) -> str:
    """A schema of arguments. Without `strict`, keywords that cannot be enforced are left out, as OpenAI does."""
    param = f"{tool.param}.parameters"
    if tool.strict and "x-guidance" in tool.parameters:
        raise InvalidRequest("The keyword 'x-guidance' is not supported", param=param)
    return schema_text(schema, json_options(lenient=not tool.strict))


def _arguments(tool: Tool) -> Constraint:
    grammar = Structured(kind="grammar", value=f"start: %json {_json_schema(tool, tool.parameters)}")
    return Constraint(grammar, f"{tool.param}.parameters")


def _reasoning_rules(form: ReasoningFormat | None, is_open: bool) -> tuple[str, list[str]]:
    if form is None:
        return "", []
    text = LarkWriter(form.token_ids).text
    gap = text(form.after) if form.after.strip() else r"/\n{0,2}/"
    if form.end in form.token_ids:
        thought = [f"thought: THOUGHT {text(form.end)} {gap}", r"THOUGHT: /(.|\n)*/"]
    else:
        thought = [f"thought: thinking {gap}", f"thinking[suffix={lark_string(form.end)}]: /(.|\\n)*/"]
    return ("thought ", thought) if is_open else (f"({text(form.start)} thought)? ", thought)
