"""Constraints on the output as llguidance grammars: how each kind is written.

The server checks the grammars that these functions write (`grammar_check`) before a request is queued; an engine
compiles the same text, so what was accepted is what is enforced. Free of torch and of any tokenizer.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import gbnf_to_lark

from engines.errors import InvalidRequest
from engines.text.json_closing import closed
from engines.text.json_rules import json_rules
from engines.types import Structured, StructuredKind

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

JSON_OPTIONS: "JsonCompileOptions" = {
    # The separators of json.dumps and no other white space: the compiler's may repeat, and a model that likes blanks
    # would write them for ever. More of it comes from `with_white_space`.
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
}
UNFORESEEN = '%llguidance {"no_forcing": true}\n'
MAX_TEXT = 256 * 1024
MAX_REGEX = 16 * 1024
MAX_GRAMMAR = 128 * 1024
GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
MAX_SCHEMA_DEPTH = 100
"""Nested objects and lists in the schema's own JSON; the compiler's reader stops at 128, ours is not to."""
MAX_SCHEMA_NODES = 10_000
MAX_PROPERTIES = 1_000
"""Properties of one object: the compiler's time grows with their square."""
MAX_REPEAT = 10_000
"""For minItems, maxItems and their like: the compiler spells each one out."""
MAX_CHOICES = 10_000
REPEATS = frozenset({"minItems", "maxItems", "minProperties", "maxProperties"})
MAX_MESSAGE = 300


def to_llguidance(structured: Structured, *, spelled: Iterable[str] = ()) -> str:
    """Return the grammar that llguidance compiles for a constraint.

    `spelled`: the texts that are single tokens of the vocabulary beside the ordinary ones. Where the constraint has
    one as text it is spelled out in ordinary tokens. Raises InvalidRequest where the constraint cannot even be
    written as a grammar; `grammar_check.validate` finds the rest.
    """
    if any(text in structured.value for text in spelled):
        # The compiler would tokenize the text it can foresee, find the single token, and then refuse it as a marker.
        return to_lark(structured)
    if structured.rules:
        return LLMatcher.grammar_from_lark(structured.rules)
    if structured.kind in ("json_schema", "json_object"):
        return LLMatcher.grammar_from_json_schema(_schema(structured))
    return LLMatcher.grammar_from_lark(LARK_WRITERS[structured.kind](structured.value))


def to_lark(structured: Structured) -> str:
    """Return the same in Lark syntax, whatever its kind is, with every text spelled out in ordinary tokens."""
    return f"{UNFORESEEN}start: {to_lark_rule(structured)}"


def to_lark_rule(structured: Structured) -> str:
    """Return the same as an expression for the right-hand side of a rule in a larger Lark grammar."""
    if structured.rules:
        return lark_rule(structured.rules)
    if structured.kind in ("json_schema", "json_object"):
        return f"%json {_schema(structured)}"
    return lark_rule(LARK_WRITERS[structured.kind](structured.value))


def lark_rule(grammar: str) -> str:
    """Return a grammar in Lark as an expression for the right-hand side of a rule in a larger one."""
    return f"%lark {{\n{grammar}\n}}"


def parser_limits() -> LLParserLimits:
    """Limits for every matcher, so that no grammar holds up a step of the engine for long.

    A matcher that meets one of them fails late: `consume_token` returns False for a token that its mask allowed, or the
    mask holds nothing but the end of the sequence while `is_accepting()` is false.
    """
    return LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def parse_schema(value: str) -> dict[str, Any]:
    """Return a schema from its JSON text, in size and shape fit for the compiler; raises InvalidRequest otherwise."""
    _check_length(value, MAX_TEXT, "JSON schema")
    try:
        schema = json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"Invalid JSON schema: {shorten(str(error))}") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise InvalidRequest(f"Invalid JSON schema: expected an object, got {shorten(value)}")
    if "x-guidance" in schema:  # the compiler's own options: white space is not the client's to choose
        raise InvalidRequest("Invalid JSON schema: the keyword 'x-guidance' is not supported")
    check_schema_size(schema)
    return schema


def check_schema_size(schema: dict[str, Any], param: str | None = None) -> None:
    """Raise InvalidRequest for a schema that is nested too deeply, or too large to compile in good time."""
    # Without recursion, so that the depth of the input cannot exhaust our stack.
    nodes, level, depth = 0, [schema], 0
    while level:
        nodes, depth = nodes + len(level), depth + 1
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidRequest(f"Invalid JSON schema: nested deeper than {MAX_SCHEMA_DEPTH} levels", param=param)
        if nodes > MAX_SCHEMA_NODES:
            message = f"Invalid JSON schema: more than {MAX_SCHEMA_NODES} objects, lists and values"
            raise InvalidRequest(message, param=param)
        for node in level:
            _check_repeats(node, param)
        level = [child for node in level for child in _children(node)]


def lark_string(text: str) -> str:
    """Return a literal of Lark that matches exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def schema_text(schema: dict[str, Any], options: "JsonCompileOptions" = JSON_OPTIONS) -> str:
    """Return the JSON text of a schema with options for the compiler, such as grammars hold it.

    Objects are closed where the schema leaves it open: see `json_closing`.
    """
    try:
        return json.dumps({**closed(schema), "x-guidance": options}, allow_nan=False)
    except ValueError as error:  # a number beyond a double
        raise InvalidRequest(f"Invalid JSON schema: {shorten(str(error))}") from None


def json_options(*, lenient: bool) -> "JsonCompileOptions":
    """The compiler's options; `lenient`: what it cannot enforce is left out, overlapping branches of `oneOf` too."""
    return {**JSON_OPTIONS, "lenient": True, "coerce_one_of": True} if lenient else JSON_OPTIONS


def with_white_space(structured: Structured) -> Structured | None:
    """The same with rules for JSON that may be laid out in lines; None where it stays in one, or is no JSON.

    It may fail to compile where the constraint does not.
    """
    if structured.kind not in ("json_schema", "json_object"):
        return None
    rules = schema_rules(_plain_schema(structured), json_options(lenient=structured.lenient))
    return None if rules is None else replace(structured, rules=rules)


def schema_rules(schema: dict[str, Any], options: "JsonCompileOptions") -> str | None:
    """A grammar in Lark for JSON that may be laid out in lines; None where it stays in one."""
    rules = json_rules(closed(schema), options)
    return rules if rules is not None and len(rules) <= MAX_GRAMMAR else None


def _schema(structured: Structured) -> str:
    return schema_text(_plain_schema(structured), json_options(lenient=structured.lenient))


def _plain_schema(structured: Structured) -> dict[str, Any]:
    return {"type": "object"} if structured.kind == "json_object" else parse_schema(structured.value)


def _lark_of_regex(value: str) -> str:
    _check_length(value, MAX_REGEX, "regular expression")
    grammar: str = json.loads(LLMatcher.grammar_from_regex(value))["grammars"][0]["lark_grammar"]
    return grammar


def _lark_of_choice(value: str) -> str:
    _check_length(value, MAX_TEXT, "choice")
    choices: list[str] = json.loads(value)
    _check_length("".join(choices), MAX_TEXT, "choice")
    if not 0 < len(choices) <= MAX_CHOICES:
        raise InvalidRequest(f"Invalid choice: expected 1 to {MAX_CHOICES} strings, got {len(choices)}")
    return "start: " + " | ".join(map(lark_string, choices))


def without_gbnf(structured: Structured) -> Structured:
    """The constraint, converted to Lark where it is a GBNF grammar. Long grammars take long. Raises InvalidRequest."""
    if structured.kind != "grammar" or not GBNF_RULE.search(structured.value):
        return structured
    lark = _lark_of_grammar(structured.value)
    _check_length(lark, MAX_GRAMMAR, "grammar, written in Lark")
    return replace(structured, value=lark)


def _lark_of_grammar(value: str) -> str:
    _check_length(value, MAX_GRAMMAR, "grammar")
    if not GBNF_RULE.search(value):
        return value
    try:
        return gbnf_to_lark(value)
    except Exception as error:  # noqa: BLE001 (the converter raises a bare one, too)
        raise InvalidRequest(f"Invalid GBNF grammar: {shorten(str(error))}") from None


LARK_WRITERS: dict[StructuredKind, Callable[[str], str]] = {
    "regex": _lark_of_regex,
    "choice": _lark_of_choice,
    "grammar": _lark_of_grammar,
}
NAMES: dict[StructuredKind, str] = {
    "json_schema": "JSON schema",
    "json_object": "JSON object",
    "regex": "regular expression",
    "choice": "choice",
    "grammar": "grammar",
}


def _check_length(text: str, limit: int, what: str) -> None:
    if len(text) > limit:
        raise InvalidRequest(f"Invalid {what}: {len(text)} characters, at most {limit} are accepted")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"Invalid {what}: it holds half of a surrogate pair")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_repeats(node: Any, param: str | None) -> None:
    if not isinstance(node, dict):
        return
    if len(node) > MAX_PROPERTIES:
        message = f"Invalid JSON schema: {len(node)} members in one object, at most {MAX_PROPERTIES}"
        raise InvalidRequest(message, param=param)
    for key in REPEATS & node.keys():
        if isinstance(node[key], int | float) and node[key] > MAX_REPEAT:
            message = f"Invalid JSON schema: '{key}' is {node[key]}, at most {MAX_REPEAT} is accepted"
            raise InvalidRequest(message, param=param)


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."
