"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): an adapter B diag(E) A whose singular values E are given up one after
the other where they matter least, so that ranks go to the layers that need them.

A checkpoint is the plain LoRA adapter that computes the same, of the ranks that each layer has kept: it is served and
merged like any other. What training goes on from is in `adalora/`: all singular values, and how much each has mattered.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.adapters.spec import CONFIG, WEIGHTS
from engines.capabilities import AdapterSupport
from engines.errors import InvalidRequest
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.params.tuner import AdaloraParams
from training.tuners.adapter import WHERE, Adapted, AdapterTuner, saved_whole, targets
from training.tuners.base import Examples, Tuned

INNER = "adalora"
"""A checkpoint's folder of what training goes on from."""
IMPORTANCE = "importance.safetensors"
PATTERN = "rank_pattern.json"
AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator keeps of each weight: the running mean of how much it matters, and of how that changes."""


class Adalora(AdapterTuner):
    name = "adalora"
    reads = WHERE | frozenset(AdaloraParams.model_fields) | {"lora_alpha", "lora_dropout"}
    quantized_bases = frozenset({"bnb", "torchao"})

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = super().refusals(params)
        if params.adapters or params.resume_only_model:
            given = "adapters" if params.adapters else "resume_only_model"
            found.append((given, "AdaLoRA begins with an adapter of its own: go on with its result by train_type lora"))
        if params.adalora_target_r >= params.adalora_init_r:
            found.append(("adalora_target_r", "ranks fall from adalora_init_r to it: it is below that"))
        return found

    def unserved(self, params: SftParams, support: AdapterSupport) -> list[Refusal]:
        if params.adalora_init_r <= support.max_rank:
            return []
        return [("adalora_init_r", f"{params.adalora_init_r} is above the {support.max_rank} served (max_lora_rank)")]

    def config(self, params: SftParams) -> Any:
        from peft import AdaLoraConfig

        return AdaLoraConfig(
            init_r=params.adalora_init_r,
            target_r=params.adalora_target_r,
            tinit=params.adalora_tinit,
            tfinal=params.adalora_tfinal,
            deltaT=params.adalora_deltaT,
            beta1=params.adalora_beta1,
            beta2=params.adalora_beta2,
            orth_reg_weight=params.adalora_orth_reg_weight,
            total_step=params.adalora_tinit + params.adalora_tfinal + 1,  # until the trainer knows how many there are
            lora_alpha=params.lora_alpha,
            lora_dropout=params.lora_dropout,
            target_modules=targets(params),
            **saved_whole(params),
        )

    def attach(self, model: Any, params: SftParams, examples: Examples | None = None) -> Tuned:
        return Falling(super().attach(model, params, examples).model)


class Falling(Adapted):
    """A `PeftModel` with an AdaLoRA adapter, whose ranks fall while it is trained."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._config = model.peft_config["default"]
        self._allocator = model.base_model.rankallocator
        self._pattern: Any = None

    def callbacks(self) -> Sequence[Any]:
        return (_callback(self),)

    def penalty(self) -> Any:
        """R(A, B): how far the singular vectors are from being orthogonal (equation 4), times its weight."""
        import torch

        distances = []
        for name, weight in self.model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                products = weight @ weight.T if ".lora_A." in name else weight.T @ weight
                distances.append(torch.norm(products - torch.eye(len(products)).to(products)))
        return self._config.orth_reg_weight * torch.stack(distances).mean()

    def begin(self, steps: int) -> None:
        """The training has `steps` steps in all. Raises InvalidRequest where they leave none for ranks to fall in."""
        if steps - self._config.tfinal <= max(1, self._config.tinit):  # of one step PEFT knows no importance yet
            message = f"with adalora_tinit, these leave none of the {steps} steps for ranks to fall in"
            raise InvalidRequest(message, param="adalora_tfinal")
        self._config.total_step = steps
        self._config.rank_pattern = self._pattern

    def step(self, number: int) -> None:
        """The optimizer has made step `number`, counted from 1, and the gradients are there yet."""
        self.model.base_model.update_and_allocate(number)

    def saved(self, checkpoint: Path) -> None:
        from safetensors.torch import save_file

        inner, pattern = checkpoint / INNER, self._config.rank_pattern
        self._config.rank_pattern = None  # else PEFT leaves out what may come back
        try:
            self.model.save_pretrained(str(inner))
        finally:
            self._config.rank_pattern = pattern
        (inner / "README.md").unlink(missing_ok=True)
        averages = {
            f"{kind}.{name}": kept for kind in AVERAGES for name, kept in getattr(self._allocator, kind).items()
        }
        save_file({name: kept.detach().cpu().contiguous() for name, kept in averages.items()}, inner / IMPORTANCE)
        (inner / PATTERN).write_text(json.dumps(pattern))
        _write_plain(checkpoint, self._config, pattern or {})

    def resume(self, checkpoint: Path) -> Path:
        from safetensors.torch import load_file

        inner = checkpoint / INNER
        if not inner.is_dir():
            message = f"the training of {checkpoint.name} did not have train_type adalora"
            raise InvalidRequest(message, param="train_type")
        super().resume(inner)
        device = self.model.device
        for name, kept in load_file(inner / IMPORTANCE).items():
            kind, _, weight = name.partition(".")
            getattr(self._allocator, kind)[weight] = kept.to(device)
            self._allocator.ipt[weight] = kept.to(device)  # which is computed anew, where it is there
        self._pattern = json.loads((inner / PATTERN).read_text())
        return inner


def _callback(tuned: Falling) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        """Tells the adapter of the steps that the trainer makes."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tuned.begin(state.max_steps)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tuned.step(state.global_step + 1)

    return Steps()


def _write_plain(checkpoint: Path, config: Any, pattern: dict[str, list[bool]]) -> None:
    """Replace what PEFT has written into `checkpoint` by the LoRA adapter of scale 1 that computes the same."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / INNER / WEIGHTS)
    kept = {name.partition(".lora_E")[0]: torch.tensor(mask) for name, mask in pattern.items()}
    scale = config.lora_alpha / (config.init_r + 1e-5)  # PEFT's
    ranks: dict[str, int] = {}
    for name in [name for name in weights if name.endswith(".lora_E")]:
        path = name.removesuffix(".lora_E")
        values, a, b = (weights.pop(f"{path}.lora_{part}") for part in "EAB")
        layer = path.removeprefix("base_model.model.")
        chosen = kept.get(layer, torch.ones(len(values), dtype=torch.bool)).flatten()
        if not chosen.any():
            chosen[0] = True  # PEFT knows no rank 0: its value is 0
        ranks[layer] = int(chosen.sum())
        weights[f"{path}.lora_A.weight"] = (a * values)[chosen].contiguous()
        weights[f"{path}.lora_B.weight"] = (b * scale)[:, chosen].contiguous()
    rank = max(ranks.values())
    others = {layer: each for layer, each in ranks.items() if each != rank}
    save_file(weights, checkpoint / WEIGHTS)
    plain = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=dict(others),
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules,
        modules_to_save=config.modules_to_save,
        base_model_name_or_path=config.base_model_name_or_path,
        task_type=config.task_type,
    )
    (checkpoint / CONFIG).unlink()
    plain.save_pretrained(str(checkpoint))
