"""Tool calls as a model writes them."""

import json
from collections.abc import Iterable
from typing import Any

from engines.text.tool_syntax import Literals, Tags, ToolFormat


def written_calls(form: ToolFormat, calls: Iterable[tuple[str, str]]) -> str:
    """Calls, each a name and its arguments as JSON, in a model's form."""
    texts = [_written(form, index, *call) for index, call in enumerate(calls)]
    return form.first + (form.separator or "\n").join(texts) + form.last


def parse_arguments(text: str) -> dict[str, Any] | None:
    """The object that the JSON is; None where it is none."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _written(form: ToolFormat, index: int, name: str, arguments: str) -> str:
    between = form.between.replace("{index}", str(index))
    return f"{form.before}{name}{between}{_arguments(form, arguments)}{form.after}"


def _arguments(form: ToolFormat, text: str) -> str:
    """Text that is no object is written as it is, in any form."""
    syntax, arguments = form.arguments, parse_arguments(text)
    if syntax is None or arguments is None:
        return text
    if isinstance(syntax, Tags):
        parts = (
            f"{syntax.begin(key, string=isinstance(value, str))}{plain(value)}{syntax.after}"
            for key, value in arguments.items()
        )
        return "".join(parts) + syntax.end
    return (
        syntax.comma.join(f"{key}{syntax.assign}{literal(syntax, value)}" for key, value in arguments.items())
        + syntax.close
    )


def plain(value: Any) -> str:
    """A string as it is, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def literal(syntax: Literals, value: Any) -> str:
    """A value of JSON as a literal."""
    if isinstance(value, str):
        return _string(syntax, value)
    if isinstance(value, list):
        return f"[{syntax.comma.join(literal(syntax, item) for item in value)}]"
    if isinstance(value, dict):
        members = (f"{literal_key(syntax, key)}{syntax.colon}{literal(syntax, item)}" for key, item in value.items())
        return "{" + syntax.comma.join(members) + "}"
    true, false, null = syntax.words
    words = {True: true, False: false, None: null}
    return words[value] if value is None or isinstance(value, bool) else json.dumps(value)


def literal_key(syntax: Literals, key: str) -> str:
    """A key of an object within the arguments."""
    return _string(syntax, key) if syntax.escapes else key


def _string(syntax: Literals, text: str) -> str:
    quote = syntax.quotes[0]
    return json.dumps(text, ensure_ascii=False) if syntax.escapes else f"{quote}{text}{quote}"
