"""How a job is doing: its state in a few lines, its curves, and which of its buttons have a meaning."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

GIB = 2**30
ENDED = frozenset({"succeeded", "failed", "cancelled"})
SHOWN_METRICS = ("loss", "reward", "rewards/margins", "rewards/accuracies", "accuracy")
"""What is drawn, where it was logged."""

ACTIONS: Mapping[str, frozenset[str]] = {
    "pause": frozenset({"queued", "running"}),
    "resume": frozenset({"paused"}),
    "cancel": frozenset({"validating_files", "queued", "running", "paused"}),
    "retry": frozenset({"failed", "cancelled"}),
}
"""What can be done with a job, and in which states."""

Point = tuple[int, float, str]
"""A step, a value, and what of it."""


def label(job: Mapping[str, Any]) -> str:
    made = time.strftime("%m-%d %H:%M", time.localtime(job["created_at"]))
    return f"{job['type']} · {job['status']} · {made} · {job['id']}"


def points(events: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The curves of a training: each metric that is drawn, of steps and of evaluations apart."""
    found: list[Point] = []
    for event in events:
        prefix = "" if event["type"] == "step" else "eval "
        values = event.get("metrics") or {}
        found += [(event["step"], values[name], prefix + name) for name in SHOWN_METRICS if name in values]
    return found


def columns(found: Sequence[Point]) -> dict[str, list[Any]]:
    steps, values, metrics = zip(*found, strict=True) if found else ((), (), ())
    return {"step": list(steps), "value": list(values), "metric": list(metrics)}


def progress(events: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    """The last step that was told of, and how many there are."""
    steps = [event for event in events if event["type"] == "step"]
    return (steps[-1]["step"], steps[-1]["total_steps"]) if steps else None


def summary(job: Mapping[str, Any], events: Sequence[Mapping[str, Any]], messages: Sequence[Mapping[str, Any]]) -> str:
    """The job in Markdown. Errors stand first; what a job reports is shown as it is."""
    lines = [f"**{job['status']}** · `{job['id']}` · {job['type']}"]
    error = job.get("error") or {}
    if error:
        lines.append(f"**{error['code']}**: {error['message']}")
    if at := progress(events):
        lines.append(f"step {at[0]} / {at[1]}")
    if job.get("fine_tuned_model"):
        lines.append(f"`{job['fine_tuned_model']}`")
    if (result := job.get("result")) is not None:
        lines += [f"{name}: {value}" for name, value in _told(result)]
    said = [event["message"] for event in messages if event["type"] == "message"]
    lines += [f"- {text}" for text in said if text != error.get("message")][:8]
    return "\n\n".join(lines)


def _told(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What came out, flat; of a dry run what it would take."""
    told = [(name, str(value)) for name, value in result.items() if value not in (None, {}) and name != "memory"]
    if (memory := result.get("memory")) is None:
        return told
    fits = "fits" if memory["fits"] else "does not fit"
    taken = f"{memory['total'] / GIB:.2f} GiB of {memory['available'] / GIB:.2f} GiB on {memory['device']}: {fits}"
    return [*told, ("memory", taken)]
