"""The optimizers that transformers' trainer makes by their names."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import prod
from typing import Any

from training.optimizers.base import Optimizer
from training.params.refusal import Refusal
from training.params.sft import SftParams

PACKAGES = {
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu_fused": "torch_npu",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "stable_adamw": "optimi",
}
"""Value of `optim` -> the package that transformers takes it from."""
BITSANDBYTES = frozenset(
    {
        "ademamix", "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit",
        "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
        "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
    }
)  # fmt: skip
SETTINGS: Mapping[str, Mapping[str, type]] = {
    "sgd": {"momentum": float, "dampening": float, "nesterov": bool},
    "adagrad": {"lr_decay": float, "eps": float},
    "rmsprop": {"momentum": float, "alpha": float, "eps": float, "centered": bool},
}
"""Value of `optim` -> what transformers reads of `optim_args`."""
OF_ADEMAMIX: Mapping[str, type] = {
    "beta1": float, "beta2": float, "beta3": float, "alpha": float, "eps": float, "t_alpha": int, "t_beta3": int,
}  # fmt: skip
COPIES = {"ademamix": 3, "lion": 1, "rmsprop": 1, "adagrad": 1, "sgd": 1, "adafactor": 0}
"""Numbers that are kept for each weight; two by the others."""


class Named(Optimizer):
    parameter = "optim"
    names = frozenset(
        {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", *PACKAGES, *BITSANDBYTES}
    )
    beside = frozenset()
    reads = frozenset({"optim", "optim_args"})

    def asked_for(self, params: SftParams) -> bool:
        return True

    def refusals(self, params: SftParams) -> list[Refusal]:
        package = "bitsandbytes" if params.optim in BITSANDBYTES else PACKAGES.get(params.optim)
        found = [] if package is None else missing(package, "optim", params.optim)
        if params.optim in BITSANDBYTES and params.fsdp is not None:
            found.append(("fsdp", f"{params.optim} of bitsandbytes keeps what belongs to whole weights: leave it out"))
        return found

    def settings(self, params: SftParams) -> Mapping[str, type]:
        return OF_ADEMAMIX if _kind(params.optim) == "ademamix" else SETTINGS.get(params.optim, {})

    def make(self, model: Any, params: SftParams, arguments: Any, *, steps: int) -> None:
        return None

    def arguments(self, params: SftParams) -> dict[str, Any]:
        return {"optim": params.optim, "optim_args": _joined(params.optim_args or {})}

    def state_bytes(self, params: SftParams, shape: Sequence[int]) -> int:
        numbers = prod(shape)
        if _kind(params.optim) == "adafactor":  # one for each row and column
            return 4 * (sum(shape[-2:]) if len(shape) > 1 else numbers)
        if _kind(params.optim) == "sgd" and not (params.optim_args or {}).get("momentum"):
            return 0
        bits = 4 if "4bit" in params.optim else 8 if "8bit" in params.optim else 32
        return COPIES.get(_kind(params.optim), 2) * numbers * bits // 8


def missing(package: str, parameter: str, value: str) -> list[Refusal]:
    if find_spec(package) is not None:
        return []
    return [(parameter, f"{value} needs the package {package}, which is not installed here")]


def _kind(optim: str) -> str:
    return next((kind for kind in COPIES if optim.removeprefix("paged_").startswith(kind)), "adamw")


def _joined(settings: Mapping[str, Any]) -> str | None:
    """In transformers' words: `momentum=0.9,nesterov=true`."""
    return ",".join(f"{name}={value}" for name, value in settings.items()) or None
