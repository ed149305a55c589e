"""The hyperparameters of a fine-tuning job that its user left at `"auto"`: chosen from data, model and method.

What decides is how far the weights of an adapter travel: about the learning rate times the number of steps. A rate
that teaches 10,000 lines leaves 60 of them unlearned, as they make too few steps. Measured on SmolLM2-135M-Instruct,
LoRA of rank 8 and alpha 32 over all linear layers, 60 short lines of a new identity, 3 epochs in batches of 4: at
1e-3 the model names itself in every phrasing, at 1e-4 (the reference's default) it has learned nothing. So:

- **n_epochs**: 3, more where the data is so small that these make too few steps (at least SAMPLES_TO_LEARN samples are
  seen, in at most MAX_EPOCHS rounds), fewer where it is so large that 3 rounds would teach it by heart.
- **batch_size**: the largest power of two, up to MAX_BATCH, that leaves about STEPS_TO_LEARN steps. LoRA bears large
  batches less well than full training does, so it stops there.
- **learning_rate_multiplier**: times BASE_LEARNING_RATE. A wider model wants a lower rate: the best rate of LoRA falls
  with about the width to the power of 0.78 ("LoRA Without Regret", Thinking Machines 2025), and width grows with
  about the weights to the power of 0.45, so the rate falls with the weights to the power of 0.35, through what was
  measured. It hardly depends on the rank, as the adapter's output is divided by that. From STEPS_AT_FULL_RATE steps
  on it falls with their square root: 10,000 lines are learned at a rate that does not undo what the model knew. DPO
  learns at a fifth of all that: its loss has no floor, so that rates that teach answers drive the pairs apart until
  the text falls to pieces. Measured on the same model, 60 pairs, 3 epochs in batches of 4 at 2e-4: every pair's
  better answer is preferred, and questions that were not among them get answers of the better kind, in whole
  sentences.
- **beta** of DPO and others: the reference's, 0.1, and 2.0 in SimPO. **desirable_weight** and **undesirable_weight** of
  KTO: 1.
"""

import math
from dataclasses import dataclass
from typing import Any

from training.methods.base import Method
from training.tuners.adapter import AdapterTuner

BASE_LEARNING_RATE = AdapterTuner.learning_rate
"""What `learning_rate_multiplier` multiplies: the reference's rate for adapters."""
SAMPLES_TO_LEARN = 180
SAMPLES_TO_KNOW_BY_HEART = 30_000
EPOCHS = 3
MAX_EPOCHS = 25
STEPS_TO_LEARN = 45
MAX_BATCH = 16
MEASURED_WEIGHTS = 135e6
MEASURED_RATE = 1e-3
LOWEST_RATE, HIGHEST_RATE = 1e-5, 2e-3
STEPS_AT_FULL_RATE = 200
UNKNOWN_WEIGHTS = 1e9
"""Where nobody could say how large the model is: the rate is then right within a factor of two from 0.2 to 8
billion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """As OpenAI names them. None: `"auto"`."""

    n_epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    beta: float | None = None
    """How strongly the model is held to the reference model, in methods that have one."""
    desirable_weight: float | None = None
    """Weight of good answers, where answers are judged one by one."""
    undesirable_weight: float | None = None
    """Weight of bad ones."""
    compute_multiplier: float | None = None
    """How much is explored, in units of what is usual, in methods that learn from rewards."""
    eval_interval: int | None = None
    """Steps between two evaluations, in these."""
    eval_samples: int | None = None
    reasoning_effort: str | None = None


def choose(wanted: Hyperparameters, *, method: Method[Any], rows: int, model_parameters: int | None) -> Hyperparameters:
    """`wanted` with a number for each `"auto"`; what is given stays as it is, and the others are chosen to fit it."""
    n_epochs = wanted.n_epochs or _epochs(rows)
    batch_size = wanted.batch_size or max(method.least_in_a_pass, _batch(rows * n_epochs))
    steps = max(1, math.ceil(rows / batch_size)) * n_epochs
    rate = method.part_of_rate * _rate(model_parameters or UNKNOWN_WEIGHTS)
    return Hyperparameters(
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=wanted.learning_rate_multiplier or _multiplier(rate, steps),
        **{name: _given(getattr(wanted, name), automatic) for name, automatic in method.hyperparameters.items()},
    )


def _given(value: Any, automatic: Any) -> Any:
    return automatic if value is None else value


def _epochs(rows: int) -> int:
    if rows * EPOCHS < SAMPLES_TO_LEARN:
        return min(MAX_EPOCHS, math.ceil(SAMPLES_TO_LEARN / max(1, rows)))
    return max(1, min(EPOCHS, SAMPLES_TO_KNOW_BY_HEART // rows))


def _batch(samples: int) -> int:
    largest = max(1, min(MAX_BATCH, samples // STEPS_TO_LEARN))
    return 1 << (largest.bit_length() - 1)


def _rate(weights: float) -> float:
    """The rate that teaches answers to a model of so many weights, in few steps."""
    return float(min(HIGHEST_RATE, MEASURED_RATE * (MEASURED_WEIGHTS / weights) ** 0.35))


def _multiplier(rate: float, steps: int) -> float:
    """To two digits: nobody knows it better."""
    lowered = rate * min(1.0, math.sqrt(STEPS_AT_FULL_RATE / steps))
    return float(f"{max(LOWEST_RATE, lowered) / BASE_LEARNING_RATE:.2g}")
