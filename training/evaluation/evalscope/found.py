"""What EvalScope has found: its report of a benchmark, and its review of each answer."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from engines.errors import TuneserveError
from training.evaluation.evalscope.benchmarks import Benchmark
from training.evaluation.results import Measured, Score
from training.evaluation.rows import json_lines

ROUNDED = 1e-4
"""EvalScope's reports have four decimals, and parts that were rounded before they were put together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    scores: Sequence[Score]
    samples: Sequence[Mapping[str, Any]]
    """Each question with the answer and its grades."""
    unmeasured: Mapping[str, str]
    """EvalScope's metrics that failed, which its report has as 0, and why."""


def read(benchmark: Benchmark, folder: Path) -> Found:
    """What EvalScope left in its `work_dir`. Raises TuneserveError where that is none of what it was made for."""
    reports = sorted(folder.glob("reports/*/*.json"))
    if len(reports) != 1:
        raise TuneserveError(f"EvalScope has left {len(reports)} reports of {benchmark.kind}")
    report = json.loads(reports[0].read_text())
    subsets = {file: file.stem.removeprefix(f"{benchmark.kind}_") for file in sorted(folder.glob("reviews/*/*.jsonl"))}
    reviews = [(subset, review) for file, subset in subsets.items() for review in json_lines(file.read_text())]
    samples = [_sample(*each) for each in reviews]
    unmeasured = {name: why for sample in samples for name, why in sample.pop("unmeasured").items()}
    failed = tuple(name.lower() for name in unmeasured)
    scores = [score for score in _scores(benchmark, report, samples) if not score.metric.lower().startswith(failed)]
    for sample in samples:
        for name in [name for name in sample["grades"] if name.lower().startswith(failed)] if failed else ():
            del sample["grades"][name]
    return Found(scores=scores, samples=[_flat(sample) for sample in samples], unmeasured=unmeasured)


def measured(
    model: str, benchmarks: Sequence[Benchmark], found: Sequence[Found], settings: Mapping[str, Any]
) -> Measured:
    return Measured(
        model=model,
        scores=[score for part in found for score in part.scores],
        samples={each.name: part.samples for each, part in zip(benchmarks, found, strict=True)},
        settings=settings,
    )


def _sample(subset: str, review: Mapping[str, Any]) -> dict[str, Any]:
    asked = [{name: each[name] for name in ("role", "content")} for each in review["messages"] if _is_asked(each)]
    score = review["sample_score"]["score"]
    digest = hashlib.sha256(json.dumps([asked, review["target"]]).encode()).hexdigest()
    return {
        "doc_id": f"{subset}/{review['index']}",
        "doc_hash": digest,
        "filter": "none",
        "messages": asked,
        "target": review["target"],
        "response": score["prediction"],
        "extracted": score["extracted_prediction"],
        "grades": score["value"],
        "unmeasured": {name: in_short(why) for name, why in (score["metadata"] or {}).get("metric_errors", {}).items()},
    }


def in_short(why: str) -> str:
    """An error in one line: NLTK frames its own, and lists folders."""
    told = [line.strip() for line in why.splitlines() if line.strip(" *")]
    return " ".join(told[: 2 if why.partition("\n")[0].rstrip().endswith(":") else 1])


def _is_asked(message: Mapping[str, Any]) -> bool:
    return not (message["role"] == "assistant" and message.get("source") == "generate")


def _flat(sample: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in sample.items() if name != "grades"}, **sample["grades"]}


def _scores(benchmark: Benchmark, report: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[Score]:
    """Where a metric is the mean of the answers' grades, the whole of it with its error; else as the report has it."""
    metrics, names = report["metrics"], list(samples[0]["grades"]) if samples else []
    if len(names) != len(metrics):
        names = [_name(metric["identity"]) for metric in metrics]
    scores = []
    for name, metric in zip(names, metrics, strict=True):
        values = [sample["grades"][name] for sample in samples if name in sample["grades"]]
        is_mean = len(values) == metric["num"] and abs(fmean(values) - metric["score"]) <= ROUNDED
        direction = (metric.get("semantics") or {}).get("direction")
        scores.append(
            Score(
                task=benchmark.name,
                metric=name,
                filter="none",
                value=fmean(values) if is_mean else float(metric["score"]),
                stderr=stdev(values) / len(values) ** 0.5 if is_mean and len(values) > 1 else None,
                questions=int(metric["num"]),
                higher_is_better=direction != "lower_is_better",
            )
        )
    return scores


def _name(identity: Mapping[str, Any]) -> str:
    more = [str(value) for value in (identity.get("aggregation"), *identity.get("dimensions", {}).values()) if value]
    return "-".join([identity["name"], *(each for each in more if each != "mean")])
