"""GaLore (Zhao et al. 2024, arXiv:2403.03507): Adam on gradients that are projected to a low rank, so that what it
keeps of a weight is small; and Q-GaLore (Zhang et al. 2024, arXiv:2407.08296), whose projections are computed anew the
more rarely the less they change, and may be quantised.

galore-torch makes the steps. What it projects with is kept in the optimizer's state, so that checkpoints have it.
"""

from collections.abc import Sequence
from typing import Any

from engines.errors import InvalidRequest
from training.optimizers.base import ADAMW, Optimizer, decayed, inner_linear
from training.optimizers.named import missing
from training.params.refusal import Refusal, given
from training.params.sft import SftParams
from training.params.tuner import GaloreParams

QUANTISED = (
    "galore_proj_quant", "galore_proj_bits", "galore_proj_group_size", "galore_cos_threshold", "galore_gamma_proj",
    "galore_queue_size",
)  # fmt: skip
"""Parameters of Q-GaLore alone."""
IN_8_BITS = ("galore_adamw_8bit", "galore_adamw_8bit_layerwise")
BITS, GROUP = 4, 256
"""Of a projection that is quantised, unless given: those of the paper."""


class Galore(Optimizer):
    parameter = "use_galore"
    names = frozenset(
        {"galore_adamw", "galore_adamw_layerwise", "galore_adafactor", "galore_adafactor_layerwise", *IN_8_BITS}
    )
    beside = ADAMW | {"adafactor"}
    reads = frozenset(GaloreParams.model_fields)
    train_types = frozenset({"full"})
    whole = True

    def asked_for(self, params: SftParams) -> bool:
        return params.use_galore or params.optim in self.names

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = missing("galore_torch", self.parameter, "GaLore")
        if params.optim in IN_8_BITS:
            found.append(("optim", f"{params.optim} of galore-torch does not run with today's bitsandbytes"))
        if not params.galore_quantization:
            found += [
                (name, "only Q-GaLore reads it: set galore_quantization to true") for name in given(params, QUANTISED)
            ]
        elif not params.galore_proj_quant:
            bits = ("galore_proj_bits", "galore_proj_group_size")
            found += [
                (name, "no projection is quantised: set galore_proj_quant to true") for name in given(params, bits)
            ]
        return found + (at_once(params, _parameter_for_each(params)) if self.each_at_once(params) else [])

    def make(self, model: Any, params: SftParams, arguments: Any, *, steps: int) -> Any:
        from training.optimizers.projected import galore_adafactor, galore_adamw, step_at_once

        groups = self._groups(model, params, arguments)
        optimizer = (galore_adafactor if "adafactor" in params.optim else galore_adamw)(groups, arguments)
        if self.each_at_once(params):
            step_at_once(optimizer, arguments, _parameter_for_each(params))
        return optimizer

    def state_bytes(self, params: SftParams, shape: Sequence[int]) -> int:
        """As if it were one of the weights that are projected, where it has two sides."""
        if len(shape) != 2 or min(shape) <= params.galore_rank:
            return super().state_bytes(params, shape)
        bits = (params.galore_proj_bits or BITS) if params.galore_proj_quant else 32
        return params.galore_rank * (8 * max(shape) + min(shape) * bits // 8)

    def each_at_once(self, params: SftParams) -> bool:
        return params.galore_optim_per_parameter or params.optim.endswith("layerwise")

    def _groups(self, model: Any, params: SftParams, arguments: Any) -> list[dict[str, Any]]:
        """The weights that are trained, those to project apart. Raises InvalidRequest."""
        chosen = {id(weight) for weight in _projected(model, params)}
        settings: dict[str, Any] = {
            "rank": params.galore_rank,
            "update_proj_gap": params.galore_update_proj_gap,
            "scale": params.galore_scale,
            "proj_type": params.galore_proj_type,
        }
        if params.galore_quantization:
            settings |= {
                "cos_threshold": params.galore_cos_threshold,
                "gamma_proj": params.galore_gamma_proj,
                "queue_size": params.galore_queue_size,
                "bits": (params.galore_proj_bits or BITS) if params.galore_proj_quant else None,
                "group_size": params.galore_proj_group_size or GROUP,
            }
        return split(decayed(model, arguments.weight_decay), chosen, settings)


def split(groups: Sequence[dict[str, Any]], chosen: set[int], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """`groups` of a torch optimizer, in which the weights of the ids `chosen` are groups of their own with
    `settings`."""
    found = []
    for group in groups:
        inside = [weight for weight in group["params"] if id(weight) in chosen]
        outside = [weight for weight in group["params"] if id(weight) not in chosen]
        found += [{**group, "params": outside}, {**group, "params": inside, **settings}]
    return [group for group in found if group["params"]]


def at_once(params: SftParams, parameter: str) -> list[Refusal]:
    """What does not go together with a step of each weight as soon as its gradient is there."""
    found = []
    if params.gradient_accumulation_steps > 1:
        found.append(
            (parameter, "each gradient goes at once, so that none add up: set gradient_accumulation_steps to 1")
        )
    if params.max_grad_norm > 0:
        found.append((parameter, "gradients have gone before their norm is known: set max_grad_norm to 0"))
    if params.fp16:
        found.append((parameter, "gradients of fp16 are scaled: use bf16"))
    return found


def _parameter_for_each(params: SftParams) -> str:
    return "galore_optim_per_parameter" if params.galore_optim_per_parameter else "optim"


def _projected(model: Any, params: SftParams) -> list[Any]:
    """The weights to project. Raises InvalidRequest where there are none."""
    inner = inner_linear(model)
    named = params.galore_target_modules
    if named is None or named == ("all-linear",):
        found = list(inner.values())
    else:
        for part in named:
            if not any(part in name for name in inner):
                raise InvalidRequest(f"no linear layer has {part!r} in its name", param="galore_target_modules")
        found = [weight for name, weight in inner.items() if any(part in name for part in named)]
    if params.galore_with_embedding:
        found.append(model.get_input_embeddings().weight)
    large = [weight for weight in found if weight.requires_grad and min(weight.shape) > params.galore_rank]
    if not large:
        message = (
            f"no weight that is trained has more than {params.galore_rank} rows and columns: nothing would be projected"
        )
        raise InvalidRequest(message, param="galore_rank")
    return large
