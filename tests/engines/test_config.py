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
NF4 = {"quant_method": "bnb", "quant_bits": 4}
BESIDE: dict[str, dict[str, Any]] = {
    "quant_method": {"quant_bits": 8},
    "quant_bits": {"quant_method": "torchao"},
    "hqq_axis": {"quant_method": "hqq", "quant_bits": 4},
    "bnb_4bit_compute_dtype": NF4,
    "bnb_4bit_quant_type": NF4,
    "bnb_4bit_use_double_quant": NF4,
    "bnb_4bit_quant_storage": NF4,
}
"""What has to be given beside a parameter for it to be read."""
VALUES = {
    "quant_method": "torchao",
    "hqq_axis": 0,
    "max_itl_slowdown": 3.0,
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
}


@pytest.mark.parametrize("name", DeployParams.model_fields)
def test_another_value_makes_another_configuration_of_the_engines_that_read_it(name: str) -> None:
    beside = {"model": "m", **BESIDE.get(name, {})}
    value = VALUES.get(name, another_value(DeployParams.model_fields[name]))
    plain, given = (DeployParams.model_validate(each) for each in (beside, beside | {name: value}))
    changed = tuple(engine for engine in EVERY_ENGINE if is_changed(engine, plain, given))
    assert changed == about(DeployParams.model_fields[name]).engines


def is_changed(engine: str, plain: DeployParams, given: DeployParams) -> bool:
    configure = CONFIGURE[engine]
    try:
        return configure(given) != configure(plain)
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
