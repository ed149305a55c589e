"""An integer of a body may be written as JSON's other clients write it: 2.0, in any field that asks for one."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from engines.errors import InvalidRequest
from server.http.body import RequestBody, validate
from server.http.integers import MOST, as_integer
from tests.server.api import Api
from tests.server.client import echo_client
from tests.server.http.test_nulls import bodies
from training.params.graders import GraderSampling


def integer_of(schema: dict[str, Any]) -> Any:
    """The least that a field of this schema takes: an integer, or a list of one; None where it takes none."""
    for branch in schema.get("anyOf", ()):
        if (found := integer_of(branch)) is not None:
            return found
    if schema.get("type") == "array" and (item := integer_of(schema.get("items", {}))) is not None:
        return [item]
    return max(1, schema.get("minimum", 1)) if schema.get("type") == "integer" else None


def fields() -> Iterator[tuple[str, str, FieldInfo, Any]]:
    models: list[type[BaseModel]] = [*bodies(), GraderSampling]
    for body in models:
        schema = body.model_json_schema(by_alias=False)
        described = schema if "properties" in schema else schema["$defs"][body.__name__]
        for name, field in body.model_fields.items():
            if (value := integer_of(described["properties"][name])) is not None:
                yield body.__name__, name, field, value


FIELDS = sorted({case[:2]: case for case in fields()}.values(), key=lambda case: case[:2])


def read(name: str, field: FieldInfo, value: Any) -> Any:
    """What a body makes of the value that has this field and no other."""
    fields: Any = {name: (field.annotation, field)}
    model = create_model("Alone", __base__=RequestBody, **fields)
    return getattr(validate(model, {name: value}, refuse_unknown=True), name)


@pytest.mark.parametrize(("body", "name", "field", "value"), FIELDS, ids=[f"{b}.{name}" for b, name, _, _ in FIELDS])
def test_every_integer_may_be_written_with_a_point(body: str, name: str, field: FieldInfo, value: Any) -> None:
    given, wrong = ([float(value[0])], [1.5]) if isinstance(value, list) else (float(value), 1.5)
    assert repr(read(name, field, given)) == repr(read(name, field, value))
    with pytest.raises(InvalidRequest):
        read(name, field, wrong)


@pytest.mark.parametrize("value", [1.5, True, "2", float(MOST) * 2, float("inf"), None])
def test_what_is_no_whole_number_stays_as_it_is(value: Any) -> None:
    assert as_integer(value) is value


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with echo_client() as client:
        yield Api(client)


def test_a_client_that_writes_all_numbers_with_a_point_is_answered(api: Api) -> None:
    settings = {"n": 1.0, "max_tokens": 3.0, "seed": 7.0, "top_logprobs": 2.0, "logprobs": True}
    assert api.chat("hello", **settings)["usage"]["completion_tokens"] == 3
    for prompt in ([104.0, 105.0], [[104.0], [105.0]]):
        assert api.complete(prompt, max_tokens=2.0)["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize(("fields", "param"), [({"max_tokens": 2.5}, "max_tokens"), ({"seed": 0.5}, "seed")])
def test_a_fraction_is_refused_by_its_fields_name(api: Api, fields: dict[str, Any], param: str) -> None:
    refusal = api.refusal("/v1/chat/completions", **fields)
    assert (refusal.status, refusal.param) == (400, param) and "valid integer" in refusal.message
