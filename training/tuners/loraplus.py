"""LoRA+ (Hayou et al. 2024, arXiv:2402.12354): of an adapter's two matrices, B learns faster than A."""

from typing import TYPE_CHECKING, Any

from training.params.sft import SftParams


class LoraPlus:
    """Goes before a Trainer among a class's bases, and reads `lorap_lr_ratio`."""

    job_params: SftParams

    if TYPE_CHECKING:
        args: Any
        model: Any

    def create_optimizer(self, *given: Any) -> Any:
        if self.job_params.lorap_lr_ratio is None:
            return super().create_optimizer(*given)  # type: ignore[misc]  # the Trainer behind us
        import torch
        from peft.optimizers import create_loraplus_optimizer

        self.optimizer: Any = create_loraplus_optimizer(
            self.model,
            torch.optim.AdamW,
            lr=self.args.learning_rate,
            loraplus_lr_ratio=self.job_params.lorap_lr_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
        )
        return self.optimizer
