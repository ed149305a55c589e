"""Every string, list and object of every body has a limit, which /openapi.json and the documentation say."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.http.field_limits import BYTES
from tests.server.api import EchoApi
from tests.server.client import echo_client

DOCS = Path(__file__).parents[3] / "docs" / "security.md"
WORDS = {"maxLength": "characters", "maxItems": "items", "maxProperties": "members", BYTES: "bytes of JSON"}
OTHERWISE = {"enum", "const", "anyOf", "oneOf", "properties"}
"""Keywords of what needs no limit, or says it elsewhere."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    description: dict[str, Any] = echo_client().app.openapi()
    return description


Limits = Iterator[tuple[str, str]]


def limits_of(document: dict[str, Any]) -> Limits:
    """Each field of a JSON body with its limit; "" where it has none."""
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                yield from _limits(content["application/json"]["schema"], "", document)


def _limits(schema: dict[str, Any], path: str, document: dict[str, Any]) -> Limits:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if branch.keys() != {"required"}:
            yield from _limits(branch, path, document)
    kind = schema.get("type")
    if found := [f"{schema[keyword]:,} {words}" for keyword, words in WORDS.items() if keyword in schema]:
        yield path, found[0]
    elif kind in ("string", "array", "object", None) and not OTHERWISE & schema.keys():
        yield path, ""
    for name, field in schema.get("properties", {}).items():
        yield from _limits(field, f"{path}.{name}".removeprefix("."), document)
    if kind == "array" and BYTES not in schema:
        yield from _limits(schema["items"], f"{path}[]", document)
    for values in (schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()):
        if isinstance(values, dict):
            yield from _limits(values, f"{path}.*", document)


def test_no_string_list_or_object_of_a_body_is_without_a_limit(document: dict[str, Any]) -> None:
    found = list(limits_of(document))
    assert len(found) > 50
    assert [path for path, limit in found if not limit] == []


def test_the_documentation_names_every_limit(document: dict[str, Any]) -> None:
    limits: dict[str, set[str]] = defaultdict(set)
    for path, limit in limits_of(document):
        limits[path].add(limit)
    rows = [f"| `{path}` | {'; '.join(sorted(found))} |" for path, found in sorted(limits.items())]
    documented = DOCS.read_text()
    assert "\n".join(rows) in documented, "the table of docs/security.md should be:\n" + "\n".join(rows)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": "a" * 1025}, "stop"),
        ({"stop": ["a" * 1025]}, "stop[0]"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"bad_words": ["a"] * 1025}, "bad_words"),
        ({"messages": [{"role": "user", "content": "a"}] * 2049}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f", "description": "a" * (1 << 20)}}]}, "tools"),
        ({"chat_template_kwargs": {"a": "b" * (1 << 16)}}, "chat_template_kwargs"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_beyond_a_limit_is_refused_with_the_name_of_its_field(fields: dict[str, Any], param: str) -> None:
    with echo_client() as http:
        refusal = EchoApi(http).refused_chat(**fields)
    assert (refusal.status, refusal.param) == (400, param)
    assert "at most" in refusal.message
