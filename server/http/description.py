"""/openapi.json: FastAPI's description of the routes, and what it cannot see of them: bodies, keys and errors."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from server import __version__
from server.http.body import JsonBody

REFERENCE = "#/components/schemas/{model}"
KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "One of the server's keys. Files, batches, jobs and fine-tuned models belong to the name of the key "
    "that made them; for others, but for those with the role admin, they are not there. Where the server was started "
    "without keys, no request needs one, and everything is everybody's.",
}
ANTHROPIC_KEY = {
    "type": "apiKey",
    "in": "header",
    "name": "x-api-key",
    "description": "The same, as Anthropic's clients send it.",
}
NULLABLE_TEXT = {"anyOf": [{"type": "string"}, {"type": "null"}]}
ERROR = {
    "type": "object",
    "title": "Error",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": NULLABLE_TEXT,
                "code": NULLABLE_TEXT,
            },
        }
    },
}
ANTHROPIC_ERROR = {
    "type": "object",
    "title": "AnthropicError",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "details": {
                    "type": "object",
                    "required": ["error_code", "param"],
                    "properties": {"error_code": {"type": "string"}, "param": NULLABLE_TEXT},
                },
            },
        },
        "request_id": {"type": "string"},
    },
}
ERRORS = {"Error": ERROR, "AnthropicError": ANTHROPIC_ERROR}
Security = list[dict[str, list[str]]]
KEYS: Security = [{"key": []}, {"anthropic_key": []}]
Responses = dict[int | str, dict[str, Any]]
STREAMED: Responses = {
    200: {
        "description": "The answer; in a stream, its server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
"""Of a route that answers with events where it is asked to, beside what it answers else."""


def _any_error(whose: str, model: str) -> Responses:
    schema = {"$ref": REFERENCE.format(model=model)}
    told = f"What went wrong, in {whose} shape."
    return {"default": {"description": told, "content": {"application/json": {"schema": schema}}}}


ANY_ERROR = _any_error("OpenAI's", "Error")
ANY_ANTHROPIC_ERROR = _any_error("Anthropic's", "AnthropicError")


def described(routers: Iterable[APIRouter]) -> list[BaseRoute]:
    """Their routes, each named in the description by its function, and with the errors that it may answer. They keep
    nothing of an app, so that several may have the same ones: to make them takes longer than the rest of an app."""
    together = APIRouter(responses=ANY_ERROR, generate_unique_id_function=lambda route: route.name)
    for router in routers:
        together.include_router(router)
    return together.routes


class DescribedApp(FastAPI):
    """An app whose description is complete. `/docs` shows it."""

    def __init__(self, lifespan: Callable[[Any], Any], root_path: str, *, public: frozenset[str], keyed: bool) -> None:
        """`public`: paths that need no key; where the server is not `keyed`, no path does."""
        super().__init__(
            title="tuneserve",
            version=__version__,
            lifespan=lifespan,
            root_path=root_path,
            redirect_slashes=False,
        )
        self._public = public
        self._keys = KEYS if keyed else [{}, *KEYS]

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _completed(super().openapi(), self.routes, self._public, self._keys)
        return self.openapi_schema


def _completed(
    document: dict[str, Any], routes: Iterable[BaseRoute], public: frozenset[str], keys: Security
) -> dict[str, Any]:
    bodies = dict(_bodies(routes))
    references, definitions = models_json_schema(
        [(body, "validation") for body in bodies.values()], ref_template=REFERENCE
    )
    components = document.get("components", {})
    schemas = {**components.get("schemas", {}), **definitions["$defs"], **ERRORS}
    paths = {
        path: {
            method: {
                **operation,
                **({} if path in public else {"security": keys}),
                **_request_body(references, bodies.get((path, method))),
            }
            for method, operation in operations.items()
        }
        for path, operations in document["paths"].items()
    }
    components = {**components, "schemas": schemas, "securitySchemes": {"key": KEY, "anthropic_key": ANTHROPIC_KEY}}
    return {**document, "paths": paths, "components": components}


def _bodies(routes: Iterable[BaseRoute]) -> Iterator[tuple[tuple[str, str], type[BaseModel]]]:
    """The model of each body, by the path and the method that take it."""
    for route in routes:
        if not isinstance(route, APIRoute):
            continue
        for dependency in route.dependant.dependencies:
            if isinstance(dependency.call, JsonBody):
                for method in route.methods:
                    yield (route.path_format, method.lower()), dependency.call.model


def _request_body(references: Any, body: type[BaseModel] | None) -> dict[str, Any]:
    if body is None:
        return {}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": references[body, "validation"]}}}
    }
