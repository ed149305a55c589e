"""The methods of training, one file each. Light: the server refuses jobs by them."""

from collections.abc import Mapping
from typing import Any

from training.methods.base import Method
from training.methods.cpo import Cpo
from training.methods.dpo import Dpo
from training.methods.gkd import Gkd
from training.methods.grpo import Grpo
from training.methods.ipo import Ipo
from training.methods.kto import Kto
from training.methods.orpo import Orpo
from training.methods.ppo import Ppo
from training.methods.pt import Pt
from training.methods.rloo import Rloo
from training.methods.rm import Rm
from training.methods.seq_cls import SeqCls
from training.methods.sft import Sft
from training.methods.simpo import Simpo
from training.params.refusal import Refusal, not_supported, read_by_others_only
from training.params.sft import SftParams
from training.tuners import TUNERS

_ALL: tuple[Method[Any], ...] = (
    Sft(),
    SeqCls(),
    Pt(),
    Dpo(),
    Ipo(),
    Orpo(),
    Simpo(),
    Cpo(),
    Kto(),
    Rm(),
    Ppo(),
    Gkd(),
    Grpo(),
    Rloo(),
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
    among = {name: method for name, method in METHODS.items() if method.params is type(params)}
    if params.method not in among:
        return [("rlhf_type", not_supported(params.method, among))]
    method = among[params.method]
    found = _read_by_other_methods(params, method, among) + method.refusals(params)
    found += [(name, reason) for name, reason in method.needs.items() if getattr(params, name) is None]
    tuner = TUNERS.get(params.train_type)
    if tuner is not None and method.draws(params) and not tuner.draws:
        message = f"{tuner.name} cannot be run by the engine that draws the answers which {method.name} learns from"
        found.append(("train_type", message))
    if params.task_type == "seq_cls" and method.task_type != "seq_cls":
        named = " or ".join(
            f"{each.task} --{_spelled(each)}" for each in METHODS.values() if each.task_type == "seq_cls"
        )
        found.append(("task_type", f"{method.name} trains no head: choose {named}"))
    return found


def _read_by_other_methods(params: SftParams, method: Method[Any], among: Mapping[str, Method[Any]]) -> list[Refusal]:
    selector = next(iter(method.choice), "rlhf_type")
    readers = {str(each.choice.get(selector, name)): each.reads for name, each in among.items()}
    return read_by_others_only(params, selector, str(method.choice.get(selector, method.name)), readers)


def _spelled(method: Method[Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in method.choice.items())
