"""Checks answers against OpenAI's published description."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

DESCRIPTION = Path(__file__).parents[1] / "data" / "openai_openapi.json"
UNDESCRIBED: dict[str, dict[tuple[str, ...], str]] = {
    # What OpenAI's servers send, but its description leaves out.
    "CreateCompletionResponse": {
        ("choices", "finish_reason"): "null until a stream's last chunk",
        ("choices", "logprobs", "token_logprobs"): "null for the first token of an echoed prompt",
        ("choices", "logprobs", "top_logprobs"): "null for the first token of an echoed prompt",
    },
    "EvalRunOutputItem": {
        ("sample", name): "null where it was not asked for, or nothing went wrong"
        for name in ("error", "temperature", "top_p", "seed", "max_completion_tokens")
    },
    "EvalRun": {("error",): "null where nothing went wrong"},
    "Response": {("usage",): "null until the response has ended"},
    "ResponseStreamEvent": {("response", "usage"): "null until the response has ended"},
}


def check(name: str, instance: Any) -> None:
    """Fail unless `instance` is a valid `name`."""
    errors = [error for error in _validator(name).iter_errors(instance) if not _is_undescribed(name, error)]
    assert not errors, "\n".join(f"{error.json_path}: {error.message}" for error in errors)


def _is_undescribed(name: str, error: Any) -> bool:
    """Whether the error is one of the nulls above; of an `anyOf`, whether one branch fails for these only."""
    if error.context:
        branches: dict[Any, list[Any]] = {}
        for cause in error.context:
            branches.setdefault(cause.schema_path[0], []).append(cause)
        return any(all(_is_undescribed(name, cause) for cause in branch) for branch in branches.values())
    path = tuple(step for step in error.absolute_path if isinstance(step, str))
    return error.instance is None and path in UNDESCRIBED.get(name, {})


@cache
def _validator(name: str) -> Draft202012Validator:
    components = _json_schema(json.loads(DESCRIPTION.read_text()))["components"]
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components})


def _json_schema(node: Any) -> Any:
    """What the description still says in the way of OpenAPI 3.0, as JSON Schema says it: `nullable`, and a limit
    that is itself excluded."""
    if isinstance(node, list):
        return [_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _json_schema(value) for key, value in node.items() if key != "nullable"}
    if plain.get("exclusiveMinimum") is True:
        plain["exclusiveMinimum"] = plain.pop("minimum")
    return {"anyOf": [plain, {"type": "null"}]} if node.get("nullable") is True else plain
