"""LoRA+ (Hayou et al. 2024, arXiv:2402.12354): of an adapter's two matrices, B learns faster than A."""

from typing import Any

from training.optimizers.base import Optimizer
from training.params.sft import SftParams


class LoraPlus(Optimizer):
    parameter = "lorap_lr_ratio"
    reads = frozenset({"lorap_lr_ratio"})
    train_types = frozenset({"lora"})

    def asked_for(self, params: SftParams) -> bool:
        return params.lorap_lr_ratio is not None

    def make(self, model: Any, params: SftParams, arguments: Any, *, steps: int) -> Any:
        import torch
        from peft.optimizers import create_loraplus_optimizer

        return create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=arguments.learning_rate,
            loraplus_lr_ratio=params.lorap_lr_ratio,
            loraplus_weight_decay=arguments.weight_decay,
            betas=(arguments.adam_beta1, arguments.adam_beta2),
            eps=arguments.adam_epsilon,
        )
