"""The loss of classification and regression: transformers' own, by `problem_type`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.data.padded import padded
from training.losses.head import Judged
from training.params.head import ProblemType


@dataclass(frozen=True, slots=True)
class Labelled:
    pad_token_id: int
    problem: ProblemType
    num_labels: int

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (samples, tokens of the longest); `labels`: classes or values (samples,), or
        0 and 1 (samples, num_labels) as float32, where any number of classes may hold."""
        labels = torch.tensor([self._label(sample["label"]) for sample in samples])
        return padded([sample["input_ids"] for sample in samples], self.pad_token_id) | {"labels": labels}

    def _label(self, label: float | Sequence[int]) -> int | float | list[float]:
        if self.problem != "multi_label_classification":
            assert not isinstance(label, Sequence)  # as encoding has seen to
            return label
        given = label if isinstance(label, Sequence) else [label]
        return [float(each in given) for each in range(self.num_labels)]


@dataclass(frozen=True, slots=True)
class Classes:
    problem: ProblemType

    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> Judged:
        outputs = model(**inputs, use_cache=False)
        labels = inputs["labels"].reshape(len(outputs.logits), -1)
        return Judged(outputs.loss, torch.cat([outputs.logits.float(), labels.float()], dim=1))

    def measure(self, seen: Tensor) -> dict[str, float]:
        if self.problem == "single_label_classification":
            right = seen[:, :-1].argmax(1) == seen[:, -1]
            return {"accuracy": right.float().mean().item()}
        said, true = seen.chunk(2, dim=1)
        if self.problem == "regression":
            return {"mse": (said - true).square().mean().item(), "mae": (said - true).abs().mean().item()}
        chosen, wanted = said > 0, true > 0
        either = (chosen.sum() + wanted.sum()).item()
        return {
            "accuracy": (chosen == wanted).all(1).float().mean().item(),
            "micro_f1": 2 * (chosen & wanted).sum().item() / either if either else 1.0,
        }
