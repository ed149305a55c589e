"""Constraints on the output as llguidance grammars: how each kind is written, and which ones are refused.

The server validates with these functions before a request is queued; an engine compiles the same text, so what was
accepted is what is enforced. Free of torch and of any tokenizer.
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from engines.errors import InvalidRequest
from engines.text.grammar_check import problem_within_limits
from engines.types import Structured, StructuredKind

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

JSON_OPTIONS: "JsonCompileOptions" = {
    # The separators of json.dumps and no other white space: a model that likes blanks cannot write them for ever.
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
}
UNFORESEEN = '%llguidance {"no_forcing": true}\n'
MAX_TEXT = 256 * 1024
PLAIN_TEXT = 16 * 1024
MAX_REGEX = 16 * 1024
MAX_GRAMMAR = 128 * 1024
GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
MAX_SCHEMA_DEPTH = 100
"""Nested objects and lists in the schema's own JSON; the compiler's reader stops at 128, ours is not to."""
MAX_SCHEMA_NODES = 10_000
MAX_PROPERTIES = 1_000
"""Of one object: the compiler's time grows with their square."""
MAX_REPEAT = 10_000
"""For minItems, maxItems and their like: the compiler spells each one out."""
MAX_CHOICES = 10_000
REPEATS = frozenset({"minItems", "maxItems", "minProperties", "maxProperties"})
MAX_MESSAGE = 300


def to_llguidance(structured: Structured, *, spelled: Iterable[str] = ()) -> str:
    """Return the grammar that llguidance compiles for a constraint.

    `spelled`: the texts that are single tokens of the vocabulary beside the ordinary ones. Where the constraint has one as
    text it is spelled out in ordinary tokens.
    Raises InvalidRequest where the constraint cannot even be written as a grammar; `validate` finds the rest.
    """
    if any(text in structured.value for text in spelled):
        # The compiler would tokenize the text it can foresee, find the single token, and then refuse it as a marker.
        return to_lark(structured)
    if structured.kind in ("json_schema", "json_object"):
        return LLMatcher.grammar_from_json_schema(_schema(structured))
    return LLMatcher.grammar_from_lark(LARK_WRITERS[structured.kind](structured.value))


def to_lark(structured: Structured) -> str:
    """Return the same in Lark syntax, whatever its kind is, with every text spelled out in ordinary tokens."""
    return f"{UNFORESEEN}start: {to_lark_rule(structured)}"


def to_lark_rule(structured: Structured) -> str:
    """Return the same as an expression for the right-hand side of a rule in a larger Lark grammar."""
    if structured.kind in ("json_schema", "json_object"):
        return f"%json {_schema(structured)}"
    return f"%lark {{\n{LARK_WRITERS[structured.kind](structured.value)}\n}}"


def validate(structured: Structured, param: str | None = None) -> None:
    """Raise InvalidRequest, naming `param`, unless an engine can enforce the constraint.

    Bounded in time and memory. What people write takes a millisecond or, where it might take the compiler long, a tenth of
    a second the first time; the worst takes seconds: call it in a thread.
    """
    try:
        grammar = to_llguidance(structured)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=param, code=error.code) from None
    problem = problem_of(grammar) if _is_plain(structured.kind, grammar) else problem_within_limits(grammar)
    if problem:
        raise InvalidRequest(f"Invalid {NAMES[structured.kind]}: {_shorten(problem)}", param=param)


def problem_of(grammar: str) -> str | None:
    """Say why llguidance cannot run a grammar, None where it can. May take for ever: see `grammar_check`."""
    return _compile_problem(grammar) or _first_step_problem(grammar)


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
        raise InvalidRequest(f"Invalid JSON schema: {_shorten(str(error))}") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise InvalidRequest(f"Invalid JSON schema: expected an object, got {_shorten(value)}")
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
    """Return the JSON text of a schema with options for the compiler, such as grammars hold it."""
    try:
        return json.dumps({**schema, "x-guidance": options}, allow_nan=False)
    except ValueError as error:  # a number beyond a double
        raise InvalidRequest(f"Invalid JSON schema: {_shorten(str(error))}") from None


def _schema(structured: Structured) -> str:
    return schema_text({"type": "object"} if structured.kind == "json_object" else parse_schema(structured.value))


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


def _lark_of_grammar(value: str) -> str:
    _check_length(value, MAX_GRAMMAR, "grammar")
    if not GBNF_RULE.search(value):
        return value
    try:
        return gbnf_to_lark(value)
    except (GbnfToLarkError, RecursionError, IndexError) as error:
        # The converter runs off the end of a text that stops within an escape: IndexError.
        raise InvalidRequest(f"Invalid GBNF grammar: {_shorten(str(error))}") from None


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


def _is_plain(kind: StructuredKind, grammar: str) -> bool:
    """Whether the compiler is sure to be quick: not much text, no patterns to intersect or to tell apart."""
    if len(grammar) > PLAIN_TEXT or '"patternProperties"' in grammar:
        return False
    if grammar.count('"pattern"') + grammar.count('"format"') > 1:
        return False
    return kind != "grammar" or not any(sign in grammar for sign in ("&", "~", "\\u"))


def _compile_problem(grammar: str) -> str | None:
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=parser_limits())
    return messages[0].replace("Unimplemented keys:", "keywords that cannot be enforced:") if failed else None


def _first_step_problem(grammar: str) -> str | None:
    """Say why a well-formed grammar cannot be run: some show it only with the first token."""
    if LLMatcher.validate_grammar_with_warnings(grammar)[1]:
        return None  # It names tokens of the model's vocabulary, which only the engine knows.
    matcher = LLMatcher(_byte_tokenizer(), grammar, log_level=0, limits=parser_limits())
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        return "no text can match it"
    first = next((byte for byte in range(_END) if mask[byte // 8] >> byte % 8 & 1), None)
    if matcher.is_accepting() or (first is not None and matcher.consume_token(first)):
        return None
    return "it is too complex"


_END = 256


@cache
def _byte_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])


class _Bytes:
    """A vocabulary of the 256 bytes and an end: enough to run a grammar without a model."""

    eos_token_id = _END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(_END)), b"<|end|>")
    special_token_ids = (_END,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."
