"""What a parameter says of engines is what their configurations are made of: given another value, those alone
differ."""

import re
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from engines.errors import UnsupportedModel
from engines.lmdeploy.config import lmdeploy_config
from engines.params.about import EVERY_ENGINE, about
from engines.params.deploy import DeployParams
from engines.pt.config import pt_config
from engines.vllm.config import vllm_config

CONFIGURE = {"pt": pt_config, "vllm": vllm_config, "lmdeploy": lmdeploy_config}


@pytest.mark.parametrize("name", DeployParams.model_fields)
def test_another_value_makes_another_configuration_of_the_engines_that_read_it(name: str) -> None:
    given = DeployParams.model_validate({"model": "m", name: another_value(DeployParams.model_fields[name])})
    changed = tuple(engine for engine in EVERY_ENGINE if is_changed(engine, given))
    assert changed == about(DeployParams.model_fields[name]).engines


def is_changed(engine: str, given: DeployParams) -> bool:
    configure = CONFIGURE[engine]
    try:
        return configure(given) != configure(DeployParams(model="m"))
    except UnsupportedModel:
        return True


def another_value(field: FieldInfo) -> Any:
    for pattern in (each.pattern for each in field.metadata if getattr(each, "pattern", None)):
        return next(value for value in ("7GB", "/here") if re.search(pattern, value))
    default = field.get_default()
    kinds = [kind for kind in _kinds(field.annotation) if kind is not NoneType]
    match kinds[0]:
        case choice if choice not in (bool, int, float, str, tuple, dict):
            return next(each for each in kinds if each != default)
        case kind if kind is bool:
            return default if field.description and "never" in field.description else not default
        case kind if kind in (int, float):
            lowest = next((each.ge for each in field.metadata if hasattr(each, "ge")), 1)
            return next(value for value in (1, 2, lowest) if value >= lowest and value != default)
        case kind if kind is tuple:
            return ["*"]
        case kind if kind is dict:
            return {"image": 3}
        case _:
            return "other"


def _kinds(annotation: Any) -> list[Any]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return list(args)
    if origin is Annotated:
        return _kinds(args[0])
    if origin in (Union, UnionType):
        return [kind for arg in args for kind in _kinds(arg)]
    return [origin or annotation]
