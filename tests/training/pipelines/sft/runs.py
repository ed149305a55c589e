"""What the tests of supervised training have in common: parameters of a quick one, and the weights that it leaves."""

from typing import Any

import torch
from safetensors.torch import load_file

from training.folder import JobFolder

QUICK: dict[str, Any] = {
    "torch_dtype": "float32", "per_device_train_batch_size": 2, "max_steps": 6, "logging_steps": 1, "save_steps": 3,
    "learning_rate": 1e-2, "report_to": "none", "split_dataset_ratio": 0.0, "lora_dropout": 0.0,
}  # fmt: skip


def weights(job: JobFolder, step: int) -> dict[str, torch.Tensor]:
    (file,) = (job.path / f"checkpoint-{step}").glob("*model.safetensors")
    return load_file(file)
