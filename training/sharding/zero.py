"""ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054), as DeepSpeed does it: its configurations by name."""

import copy
from typing import Any

ZERO: dict[str, dict[str, Any]] = {
    "zero0": {"stage": 0},
    "zero1": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": "auto"},
    "zero2": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": "auto", "contiguous_gradients": True},
    "zero3": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}
"""What is divided: nothing, what the optimizer keeps, gradients as well, weights as well."""
ON_THE_CPU = {"device": "cpu", "pin_memory": True}
ZERO["zero2_offload"] = ZERO["zero2"] | {"offload_optimizer": ON_THE_CPU}
ZERO["zero3_offload"] = ZERO["zero3"] | {"offload_optimizer": ON_THE_CPU, "offload_param": ON_THE_CPU}

AS_THE_TRAINER: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
}
"""What transformers fills in from its own arguments."""
QUIET: dict[str, Any] = {"steps_per_print": 1_000_000_000, "zero_force_ds_cpu_optimizer": False}
"""The second has torch's AdamW step on the CPU: DeepSpeed's own would first be compiled, with a compiler that may not
be there."""


def configuration(asked: str | dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration: the one of that name, or a given one with what it leaves open."""
    given = {"zero_optimization": ZERO[asked]} if isinstance(asked, str) else asked
    return copy.deepcopy({**QUIET, **AS_THE_TRAINER, **given})


def stage(asked: str | dict[str, Any] | None) -> int:
    """What is divided among the processes; 0: nothing."""
    zero = configuration(asked).get("zero_optimization") if asked is not None else None
    return int(zero.get("stage", 0)) if isinstance(zero, dict) else 0
