"""The methods of training, one file each. Light: the server refuses jobs by them."""

from typing import Any

from training.methods.base import Method
from training.methods.cpo import Cpo
from training.methods.dpo import Dpo
from training.methods.ipo import Ipo
from training.methods.orpo import Orpo
from training.methods.pt import Pt
from training.methods.sft import Sft
from training.methods.simpo import Simpo
from training.params.refusal import Refusal, not_supported, read_by_others_only
from training.params.sft import SftParams

_ALL: tuple[Method[Any], ...] = (
    Sft(),
    Pt(),
    Dpo(),
    Ipo(),
    Orpo(),
    Simpo(),
    Cpo(),
)
METHODS = {method.name: method for method in _ALL}
BY_OPENAI_NAME = {method.openai_name: method for method in METHODS.values() if method.openai_name}


def method_of(params: SftParams) -> Method[Any]:
    """The method that `params` choose, which are not refused."""
    return METHODS[params.method]


def methods_of(task: str) -> dict[str, Method[Any]]:
    return {name: method for name, method in METHODS.items() if method.task == task}


def refusals(params: SftParams) -> list[Refusal]:
    """What the chosen method does not take."""
    among = {name: method.reads for name, method in METHODS.items() if method.params is type(params)}
    if params.method not in among:
        return [("rlhf_type", not_supported(params.method, among))]
    method = method_of(params)
    return read_by_others_only(params, "rlhf_type", method.name, among) + method.refusals(params)
