"""Whether an item has the form that its eval asks for: JSON Schema, of which clients send both sides.

Nothing is fetched, no pattern runs for long, and references are followed a bounded number of times: a schema of a few
lines could otherwise keep the server busy for years.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import regex
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import SchemaError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from engines.errors import InvalidRequest

MAX_REFERENCES = 10_000
"""References that are followed for one item."""
PATTERN_SECONDS = 0.1
MAX_UNIQUE = 1000
"""Items of a list whose `uniqueItems` is checked: each is compared with each."""
REFUSED = ("$dynamicRef", "$recursiveRef", "patternProperties", "$schema", "$id")
"""Keywords that lead elsewhere, or whose patterns jsonschema runs by itself. `$schema` may name its own draft."""
PARAM = "data_source_config.item_schema"
DRAFT = "https://json-schema.org/draft/2020-12/schema"


class ItemSchema:
    """One thread at a time checks items with it."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Raises InvalidRequest."""
        self._followed = 0
        try:
            _refuse_keywords(schema)
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise InvalidRequest(f"{PARAM}: {error.message[:300]}", param=PARAM) from None
        except RecursionError:
            raise InvalidRequest(f"{PARAM}: it is nested too deep.", param=PARAM) from None
        keywords = {"pattern": _pattern, "uniqueItems": _unique, "$ref": self._ref}
        validator: Any = extend(Draft202012Validator, keywords)  # type: ignore[no-untyped-call]
        self._validator = validator(schema, registry=Registry())

    def check(self, item: Mapping[str, Any]) -> None:
        """Raises InvalidRequest, which says what is wrong first."""
        self._followed = 0
        try:
            error = next(self._validator.iter_errors(item), None)
        except TimeoutError:
            raise InvalidRequest(f"a pattern takes longer than {PATTERN_SECONDS:g} s") from None
        except Unresolvable as missing:
            raise InvalidRequest(f"the schema refers to what it does not hold: {missing.ref[:100]!r}") from None
        except RecursionError:
            raise InvalidRequest("it, or its schema, is nested too deep") from None
        if error is not None:
            raise InvalidRequest(f"{error.json_path.replace('$', 'item', 1)[:200]}: {error.message[:300]}")

    def _ref(self, validator: Any, reference: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
        self._followed += 1
        if self._followed > MAX_REFERENCES:
            raise InvalidRequest(f"more than {MAX_REFERENCES} references of the schema have to be followed")
        yield from validator._validate_reference(ref=reference, instance=instance)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not regex.search(pattern, instance, timeout=PATTERN_SECONDS, concurrent=True):
        yield ValidationError(f"{instance[:100]!r} does not match {pattern[:100]!r}")


def _unique(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if wanted and isinstance(instance, list) and len(instance) > MAX_UNIQUE:
        yield ValidationError(f"uniqueItems is checked for at most {MAX_UNIQUE} items, here are {len(instance)}")
    else:
        yield from Draft202012Validator.VALIDATORS["uniqueItems"](validator, wanted, instance, schema) or ()


def _refuse_keywords(schema: Any) -> None:
    """Also a pattern that is none. Values of `const`, `enum`, `default` and `examples` are no schemas."""
    if isinstance(schema, list):
        for each in schema:
            _refuse_keywords(each)
    if not isinstance(schema, Mapping):
        return
    for name in REFUSED:
        if name in schema and not (name == "$schema" and str(schema[name]).rstrip("#") == DRAFT):
            raise InvalidRequest(f"{PARAM}: {name!r} is not supported.", param=PARAM)
    if not str(schema.get("$ref", "#")).startswith("#"):
        message = f"{PARAM}: {str(schema['$ref'])[:100]!r} leads out of the schema, and nothing is fetched."
        raise InvalidRequest(message, param=PARAM)
    if isinstance(pattern := schema.get("pattern"), str):
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise InvalidRequest(f"{PARAM}: the pattern {pattern[:100]!r}: {error}", param=PARAM) from None
    for name, value in schema.items():
        if name in ("properties", "$defs", "definitions", "dependentSchemas") and isinstance(value, Mapping):
            _refuse_keywords(list(value.values()))
        elif name not in ("const", "enum", "default", "examples"):
            _refuse_keywords(value)
