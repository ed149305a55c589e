"""The optimizers, one file each. Light: the server refuses jobs by them."""

from collections.abc import Iterator, Sequence

from training.optimizers.apollo import Apollo
from training.optimizers.base import Optimizer
from training.optimizers.galore import Galore
from training.optimizers.lisa import Lisa
from training.optimizers.loraplus import LoraPlus
from training.optimizers.muon import Muon
from training.optimizers.named import Named
from training.optimizers.registered import Registered
from training.optimizers.schedule_free import ScheduleFree
from training.params.refusal import Refusal, given
from training.params.sft import SftParams

OPTIMIZERS: tuple[Optimizer, ...] = (
    LoraPlus(),
    Galore(),
    Lisa(),
    Registered(),
    Apollo(),
    Muon(),
    ScheduleFree(),
    Named(),
)
"""The first that is asked for is used; the last one always is."""


def optimizer_of(params: SftParams) -> Optimizer:
    """The one that `params` ask for."""
    return _asked_for(params)[0]


def state_bytes(params: SftParams, shape: Sequence[int]) -> int:
    """Bytes that the optimizer keeps, at most, for a weight of `shape` that is trained in float32."""
    return optimizer_of(params).state_bytes(params, shape)


def refusals(params: SftParams) -> list[Refusal]:
    """What the optimizer that is asked for does not take, and any that is asked for besides."""
    chosen, *others = _asked_for(params)
    asked = f"{chosen.parameter} {params.optim}" if chosen.parameter == "optim" else chosen.parameter
    found = list(_unfit_settings(params, chosen, asked)) or chosen.refusals(params)
    found += [(other.parameter, f"not together with {asked}") for other in others if other.parameter != "optim"]
    if params.optim not in chosen.names | chosen.beside:
        found.append(("optim", f"{params.optim} is not together with {asked}"))
    if chosen.train_types and params.train_type not in chosen.train_types:
        found.append((chosen.parameter, f"only train_type {' or '.join(sorted(chosen.train_types))} reads it"))
    if chosen.whole and params.deepspeed is not None:
        found.append(("deepspeed", f"it divides weights, which {asked} looks at as a whole"))
    if chosen.whole and params.method == "ppo":
        found.append((chosen.parameter, "PPO's value model learns by the same optimizer: choose one for all weights"))
    return found + _read_by_others(params, chosen)


def _unfit_settings(params: SftParams, chosen: Optimizer, asked: str) -> Iterator[Refusal]:
    known = chosen.settings(params)
    for name, value in (params.optim_args or {}).items():
        if name not in known:
            those = f"; what it has is {', '.join(sorted(known))}" if known else ""
            yield "optim_args", f"{asked} has no setting {name!r}{those}"
        elif not _is_a(value, known[name]):
            yield "optim_args", f"{name} must be of type {known[name].__name__}, not {value!r}"


def _is_a(value: object, kind: type) -> bool:
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)


def _read_by_others(params: SftParams, chosen: Optimizer) -> list[Refusal]:
    """Parameters that were given although the chosen optimizer does not read them, but another would."""
    asked_by = {name: other.parameter for other in OPTIMIZERS for name in other.reads if other.parameter != "optim"}
    unread = [name for name in sorted(given(params, asked_by)) if name not in chosen.reads]
    return [(name, f"only {asked_by[name]} reads it") for name in unread if name != asked_by[name]]


def _asked_for(params: SftParams) -> list[Optimizer]:
    return [optimizer for optimizer in OPTIMIZERS if optimizer.asked_for(params)]
