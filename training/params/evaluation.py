"""Parameters that only an evaluation reads."""

from training.params.refusal import given
from training.params.sft import SftParams

EVALUATION = (
    "eval_strategy",
    "eval_steps",
    "per_device_eval_batch_size",
    "metric_for_best_model",
    "greater_is_better",
    "predict_with_generate",
    "metric",
    "num_generations_eval",
)


def given_for_evaluation(params: SftParams) -> list[str]:
    """Those that were given, but for eval_strategy no, which asks for nothing."""
    return [name for name in given(params, EVALUATION) if (name, params.eval_strategy) != ("eval_strategy", "no")]
