"""What an evaluation leaves: `results.json`, `samples_TASK.jsonl`, `table.md` and `plot.svg`, in one folder."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest
from training.evaluation.compare import Difference, compare, values_of
from training.evaluation.rows import json_lines

RESULTS = "results.json"
STDERR = "_stderr"
COMPARED = "compared"
"""Folder within, of what was found of the other model, where both were measured in one run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one benchmark."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    questions: int
    higher_is_better: bool

    @property
    def name(self) -> str:
        """What the metrics of a job call it."""
        return f"{self.task}/{self.metric}" + ("" if self.filter == "none" else f",{self.filter}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that was found of one model."""

    model: str
    scores: Sequence[Score]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    settings: Mapping[str, Any]
    """What was asked with."""

    def metrics(self) -> dict[str, float]:
        """Scores with their errors, by name."""
        found: dict[str, float] = {}
        for score in self.scores:
            found[score.name] = score.value
            if score.stderr is not None:
                found[f"{score.name}{STDERR}"] = score.stderr
        return found


def measured_by_harness(model: str, found: Mapping[str, Any], settings: Mapping[str, Any]) -> Measured:
    scores = []
    for task, results in found["results"].items():
        for key, value in results.items():
            metric, comma, filter = key.partition(",")
            if not comma or metric.endswith(STDERR) or not isinstance(value, int | float):
                continue
            stderr = results.get(f"{metric}{STDERR},{filter}")
            better = found.get("higher_is_better", {}).get(task, {}).get(metric)
            scores.append(
                Score(
                    task=task,
                    metric=metric,
                    filter=filter,
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, int | float) else None,
                    questions=int(found.get("n-samples", {}).get(task, {}).get("effective", 0)),
                    higher_is_better=better is not False,
                )
            )
    return Measured(model=model, scores=scores, samples=found.get("samples", {}), settings=settings)


def write(
    measured: Measured, differences: Sequence[Difference], folder: Path, *, compared: Measured | None = None
) -> None:
    folder.mkdir()
    if compared is not None:
        write(compared, (), folder / COMPARED)
    told = {
        "model": measured.model,
        "settings": measured.settings,
        "scores": [asdict(score) for score in measured.scores],
        "differences": [asdict(each) for each in differences],
    }
    for task, samples in measured.samples.items():
        lines = (json.dumps(sample, ensure_ascii=False, default=str) for sample in samples)
        (folder / _file_of(task)).write_text("".join(f"{line}\n" for line in lines))
    (folder / "table.md").write_text(table(measured, differences))
    (folder / "plot.svg").write_text(plot(measured, differences))
    (folder / RESULTS).write_text(json.dumps(told, indent=2, ensure_ascii=False, default=str) + "\n")


def _file_of(task: str) -> str:
    return f"samples_{re.sub(r'[^a-zA-Z0-9_.-]', '_', task)}.jsonl"


def read(folder: Path) -> Measured:
    """What `write` has written. Raises InvalidRequest."""
    try:
        told = json.loads((folder / RESULTS).read_text())
        scores = [Score(**score) for score in told["scores"]]
        samples = {score.task: json_lines((folder / _file_of(score.task)).read_text()) for score in scores}
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"'{folder}' holds no evaluation of ours: {error}"
        raise InvalidRequest(message, param="compare") from None
    return Measured(model=told["model"], scores=scores, samples=samples, settings=told["settings"])


def differences(mine: Measured, other: Measured, *, seed: int) -> list[Difference]:
    """What both have. Raises InvalidRequest where that is nothing, or the questions were others."""
    known = {score.name for score in other.scores}
    found = []
    for score in mine.scores:
        values = values_of(mine.samples.get(score.task, ()), score.metric, score.filter)
        if score.name not in known or not values:
            continue
        others = values_of(other.samples[score.task], score.metric, score.filter)
        found.append(
            compare(score.task, score.metric, values, others, higher_is_better=_better(score, values), seed=seed)
        )
    if not found:
        raise InvalidRequest("the two evaluations have no benchmark in common", param="compare")
    return found


def _better(score: Score, values: Mapping[str, Any]) -> bool:
    """Of a perplexity, log-likelihoods are compared, of which the higher is the better."""
    return score.higher_is_better or isinstance(next(iter(values.values())), tuple | list)


# ---- shown


def table(measured: Measured, differences: Sequence[Difference]) -> str:
    """Markdown."""
    rows = [("benchmark", "metric", "value", "± error", "questions")]
    for score in measured.scores:
        metric = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
        error = "" if score.stderr is None else f"{score.stderr:.4f}"
        rows.append((score.task, metric, f"{score.value:.4f}", error, str(score.questions)))
    text = _markdown(rows)
    if differences:
        head = ("benchmark", "metric", "this", "other", "difference (95%)", "p", "test", "better")
        text += "\n" + _markdown([head, *map(_row, differences)])
    return text


def _row(each: Difference) -> tuple[str, ...]:
    better = {True: "this", False: "other", None: "-"}[each.better]
    span = f"{each.value - each.other:+.4f} ({each.low:+.4f} to {each.high:+.4f})"
    return each.task, each.metric, f"{each.value:.4f}", f"{each.other:.4f}", span, f"{each.p:.4f}", each.test, better


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


WIDTH, BAR, LEFT = 720, 26, 300


def plot(measured: Measured, differences: Sequence[Difference]) -> str:
    """An SVG: a bar for each score between 0 and 1, with its error of 95%, and what it is compared with as a line."""
    others = {(each.task, each.metric): each.other for each in differences}
    shown = [score for score in measured.scores if 0 <= score.value <= 1]
    scale = WIDTH - LEFT - 90
    parts = []
    for number, score in enumerate(shown):
        y, end = 34 + number * BAR, LEFT + score.value * scale
        label = escape(f"{score.task} {score.metric}")
        parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{label}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{score.value * scale:.1f}" height="18" fill="#4878a8"/>')
        if score.stderr:
            low, high = (LEFT + min(1, max(0, score.value + sign * 1.96 * score.stderr)) * scale for sign in (-1, 1))
            parts.append(f'<path d="M{low:.1f} {y + 9}H{high:.1f}" stroke="black"/>')
        if (other := others.get((score.task, score.metric))) is not None:
            x = LEFT + other * scale
            parts.append(f'<path d="M{x:.1f} {y - 2}v22" stroke="#c0392b" stroke-width="2"/>')
        parts.append(f'<text x="{max(end, LEFT) + 8:.1f}" y="{y + 13}">{score.value:.3f}</text>')
    title = escape(measured.model) + (" (red: what it is compared with)" if others else "")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{44 + len(shown) * BAR}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{LEFT}" y="20" font-weight="bold">{title}</text>{"".join(parts)}</svg>\n'
    )
