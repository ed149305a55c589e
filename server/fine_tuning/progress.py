"""What a training reports, in OpenAI's words: metrics, events, the result file, and when it will be done."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from training.folder import Checkpoint, Evaluation, Event, Message, Started, Step

ACCURACIES = ("rewards/accuracies", "token_accuracy")
"""What is told as accuracy, the first that there is: with DPO, of pairs whose better answer is preferred; of tokens."""
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
REWARD_COLUMNS = (
    "step",
    "train_loss",
    "train_reward_mean",
    "valid_reward_mean",
    "train_completion_tokens_mean",
    "valid_completion_tokens_mean",
)
"""Where answers are judged while the model learns."""
REWARD, LENGTH = "reward", "completions/mean_length"
"""What a training by rewards calls the mean reward of answers, and their mean length."""


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
            told = _told(event.metrics, loss="training loss", reward="train mean reward")
            return Told("info", f"Step {event.step}/{event.total_steps}{told}", "metrics", metrics_of(event))
        case Evaluation():
            told = _told(event.metrics, loss="validation loss", reward="full validation mean reward")
            return Told("info", f"Step {event.step}{told}", "metrics", metrics_of(event))
        case Checkpoint():
            return Told("info", f"Checkpoint created at step {event.step}")


def _told(metrics: Mapping[str, float], *, loss: str, reward: str) -> str:
    """The one metric that says most, in words."""
    if REWARD in metrics:
        return f", {reward}={metrics[REWARD]:.2f}"
    return f": {loss}={metrics['loss']:.2f}" if "loss" in metrics else ""


def metrics_of(event: Step | Evaluation) -> dict[str, Any]:
    """Under OpenAI's names, and what the algorithm adds under its own."""
    kind = "train" if isinstance(event, Step) else "valid"
    accuracy = next((name for name in ACCURACIES if name in event.metrics), None)
    names = {"loss": f"{kind}_loss", accuracy: f"{kind}_mean_token_accuracy"}
    own = {names.get(name, name): value for name, value in event.metrics.items()}
    steps = {"step": event.step} | ({"total_steps": event.total_steps} if isinstance(event, Step) else {})
    return steps | own | (_judged(event, kind) if REWARD in event.metrics else {})


def _judged(event: Step | Evaluation, kind: str) -> dict[str, Any]:
    """OpenAI's metrics of reinforcement: in `scores`, and those beside it."""
    prefix, suffix = "rewards/", "/mean"
    graders = [
        {"name": name.removeprefix(prefix).removesuffix(suffix), f"{kind}_reward_mean": value}
        for name, value in event.metrics.items()
        if name.startswith(prefix) and name.endswith(suffix)
    ]
    reward = event.metrics[REWARD]
    whole = "train_mean_reward" if kind == "train" else "full_valid_mean_reward"
    found = {whole: reward, "scores": {f"{kind}_reward_mean": reward, "graders": graders}}
    if LENGTH in event.metrics:
        found["completion_tokens_mean" if kind == "train" else "valid_completion_tokens_mean"] = event.metrics[LENGTH]
    return found


def checkpoint_metrics(events: Iterable[Event], step: int) -> dict[str, float]:
    """OpenAI's metrics of a checkpoint: of the last line that was logged until then, and of that step's evaluation.

    Every evaluation is of all validation data.
    """
    found: dict[str, float] = {"step": step}
    for event in events:
        match event:
            case Step() if event.step <= step:
                found |= _only(metrics_of(event), "train_loss", "train_mean_token_accuracy", "train_mean_reward")
            case Evaluation() if event.step == step:
                metrics = metrics_of(event)
                valid = _only(metrics, "valid_loss", "valid_mean_token_accuracy")
                found |= valid | {f"full_{name}": value for name, value in valid.items()}
                found |= _only(metrics, "full_valid_mean_reward")
    return found


def _only(metrics: dict[str, Any], *names: str) -> dict[str, float]:
    return {name: metrics[name] for name in names if name in metrics}


def result_csv(events: Iterable[Event]) -> str:
    """A line for each step that was logged or evaluated; of a step that was done twice, what came last."""
    rows: dict[int, dict[str, Any]] = {}
    columns: tuple[str, ...] = COLUMNS
    for event in events:
        if isinstance(event, Step | Evaluation):
            metrics = metrics_of(event)
            if isinstance(event, Step):
                metrics["train_accuracy"] = metrics.get("train_mean_token_accuracy", "")
            if REWARD in event.metrics:
                columns = REWARD_COLUMNS
                kind = "train" if isinstance(event, Step) else "valid"
                metrics[f"{kind}_reward_mean"] = event.metrics[REWARD]
                metrics[f"{kind}_completion_tokens_mean"] = event.metrics.get(LENGTH, "")
            rows.setdefault(event.step, {"step": event.step}).update(metrics)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    return text.getvalue()
