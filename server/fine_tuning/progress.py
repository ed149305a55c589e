"""What a training reports, in OpenAI's words: metrics, events, the result file, and when it will be done."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from training.folder import Checkpoint, Evaluation, Event, Message, Started, Step

ACCURACIES = ("rewards/accuracies", "token_accuracy")
"""What is told as accuracy, the first that there is: with DPO, of pairs whose better answer is preferred; of tokens."""
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


@dataclass(frozen=True, slots=True)
class Told:
    """An event as OpenAI's API tells it."""

    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] | None = None


def tell(event: Event, *, attempt: int = 1) -> Told:
    match event:
        case Message():
            return Told(event.level, event.message)
        case Started():
            return Told("info", "Fine-tuning job started" if attempt == 1 else "Fine-tuning job resumed")
        case Step():
            loss = f": training loss={event.metrics['loss']:.2f}" if "loss" in event.metrics else ""
            return Told("info", f"Step {event.step}/{event.total_steps}{loss}", "metrics", metrics_of(event))
        case Evaluation():
            loss = f": validation loss={event.metrics['loss']:.2f}" if "loss" in event.metrics else ""
            return Told("info", f"Step {event.step}{loss}", "metrics", metrics_of(event))
        case Checkpoint():
            return Told("info", f"Checkpoint created at step {event.step}")


def metrics_of(event: Step | Evaluation) -> dict[str, Any]:
    """Under OpenAI's names, and what the algorithm adds under its own."""
    kind = "train" if isinstance(event, Step) else "valid"
    accuracy = next((name for name in ACCURACIES if name in event.metrics), None)
    names = {"loss": f"{kind}_loss", accuracy: f"{kind}_mean_token_accuracy"}
    own = {names.get(name, name): value for name, value in event.metrics.items()}
    steps = {"step": event.step} | ({"total_steps": event.total_steps} if isinstance(event, Step) else {})
    return steps | own


def checkpoint_metrics(events: Iterable[Event], step: int) -> dict[str, float]:
    """OpenAI's metrics of a checkpoint: of the last line that was logged until then, and of that step's evaluation.

    Every evaluation is of all validation data.
    """
    found: dict[str, float] = {"step": step}
    for event in events:
        match event:
            case Step() if event.step <= step:
                found |= _only(metrics_of(event), "train_loss", "train_mean_token_accuracy")
            case Evaluation() if event.step == step:
                valid = _only(metrics_of(event), "valid_loss", "valid_mean_token_accuracy")
                found |= valid | {f"full_{name}": value for name, value in valid.items()}
    return found


def _only(metrics: dict[str, Any], *names: str) -> dict[str, float]:
    return {name: metrics[name] for name in names if name in metrics}


def result_csv(events: Iterable[Event]) -> str:
    """A line for each step that was logged or evaluated; of a step that was done twice, what came last."""
    rows: dict[int, dict[str, float]] = {}
    for event in events:
        if isinstance(event, Step | Evaluation):
            metrics = metrics_of(event)
            if isinstance(event, Step):
                metrics["train_accuracy"] = metrics.get("train_mean_token_accuracy", "")
            rows.setdefault(event.step, {"step": event.step}).update(metrics)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    return text.getvalue()
