"""How good the answers to a data set are, where it gives answers too."""

from collections.abc import Iterable, Mapping
from typing import Any

from training.params.infer import AnswerParams
from training.params.task import MEASURES
from training.plugins import load
from training.rewards.overlap import score

NAMES = {"rouge": ("rouge-1", "rouge-2", "rouge-l"), "bleu": ("bleu-4",)}


def measure(params: AnswerParams, lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What `metric` asks for, over the rows that were answered and have an answer in the data; nothing where there are
    none. Raises InvalidRequest for a metric that is not registered, or fails."""
    if not params.metric:
        return {}
    pairs = [
        (line["response"] or "", line["labels"]) for line in lines if line["labels"] is not None and "error" not in line
    ]
    if not pairs:
        return {}
    found: dict[str, float] = {}
    if "accuracy" in params.metric:
        found["accuracy"] = sum(answer.strip() == label.strip() for answer, label in pairs) / len(pairs)
    if wanted := [name for metric in params.metric for name in NAMES.get(metric, ())]:
        scores = [score(answer, label) for answer, label in pairs]
        found |= {name: sum(each[name] for each in scores) / len(scores) for name in wanted}
    for name in params.metric:
        if name not in MEASURES:
            plugin = load(params.custom_register_path).find("metric", name, built_in=MEASURES)
            found[name] = plugin.number([answer for answer, _ in pairs], [label for _, label in pairs])
    return found


def check_metrics(params: AnswerParams) -> None:
    """Before anything is loaded. Raises InvalidRequest."""
    for name in params.metric:
        if name not in MEASURES:
            load(params.custom_register_path).find("metric", name, built_in=MEASURES)
