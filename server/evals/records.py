"""Evals and their runs, as they are kept and as OpenAI's API shows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from server.evals.schema import CustomConfig, LogsConfig, RunBody
from server.http.keys.caller import Caller, in_background
from training.params.graders import OneGrader

Status = Literal["queued", "in_progress", "completed", "failed", "canceled"]
UNFINISHED: tuple[Status, ...] = ("queued", "in_progress")
ItemStatus = Literal["pass", "fail", "error"]
SAMPLE_SCHEMA = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object"}},
        "output_text": {"type": "string"},
        "output_json": {},
        "output_tools": {"type": "array", "items": {"type": "object"}},
    },
}
"""What graders may refer to of an answer."""
KEPT_ITEM_SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "array", "items": {"type": "object"}}},
    "required": ["input"],
}
"""An item that is a kept answer: the messages that it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval:
    """What is to be judged, and by which graders."""

    id: str
    owner: str | None
    """Name of the key that made it; None: nobody's."""
    name: str
    metadata: dict[str, str] | None
    config: CustomConfig | LogsConfig
    criteria: list[OneGrader]
    created_at: int
    updated_at: int

    @property
    def labels(self) -> list[str]:
        """The names of its criteria, each once."""
        return labels_of(self.criteria)

    def to_wire(self) -> dict[str, Any]:
        return {
            "object": "eval",
            "id": self.id,
            "name": self.name,
            "data_source_config": _config_to_wire(self.config),
            "testing_criteria": [_criterion_to_wire(each) for each in self.criteria],
            "created_at": self.created_at,
            "metadata": self.metadata,
        }


def labels_of(criteria: list[OneGrader]) -> list[str]:
    """What results call each: its name, numbered where an earlier one has it."""
    labels: list[str] = []
    for each in criteria:
        label, number = each.label, 2
        while label in labels:
            label, number = f"{each.label}-{number}", number + 1
        labels.append(label)
    return labels


def _criterion_to_wire(criterion: OneGrader) -> dict[str, Any]:
    return {"name": criterion.label, **criterion.model_dump(mode="json", exclude_unset=True)}


def _config_to_wire(config: CustomConfig | LogsConfig) -> dict[str, Any]:
    custom = isinstance(config, CustomConfig)
    item = config.item_schema if isinstance(config, CustomConfig) else KEPT_ITEM_SCHEMA
    has_sample = not isinstance(config, CustomConfig) or config.include_sample_schema
    sample = {"sample": SAMPLE_SCHEMA} if has_sample else {}
    schema = {"type": "object", "properties": {"item": item, **sample}, "required": ["item", *sample]}
    metadata = {} if custom else {"metadata": getattr(config, "metadata", None)}
    return {"type": config.type, "schema": schema, **metadata}


@dataclass(slots=True, kw_only=True)
class ModelUsage:
    """What one model was asked in a run, by the run itself and by its graders."""

    invocations: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def add(self, tokens: Mapping[str, int]) -> None:
        """One more answer, whose usage is `tokens`."""
        self.invocations += 1
        self.prompt_tokens += tokens["prompt_tokens"]
        self.completion_tokens += tokens["completion_tokens"]
        self.cached_tokens += tokens["cached_tokens"]


@dataclass(slots=True, kw_only=True)
class Counts:
    """What there is of a run so far."""

    passed: int = 0
    failed: int = 0
    errored: int = 0
    criteria: dict[str, list[int]] = field(default_factory=dict)
    """Criterion -> items that passed it, and that did not."""
    usage: dict[str, ModelUsage] = field(default_factory=dict)

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Counts":
        usage = {model: ModelUsage(**tokens) for model, tokens in plain.get("usage", {}).items()}
        return cls(**{**plain, "usage": usage})

    def add(self, status: ItemStatus, results: list[dict[str, Any]]) -> None:
        """One more item."""
        self.passed += status == "pass"
        self.failed += status == "fail"
        self.errored += status == "error"
        for result in results:
            self.criteria.setdefault(result["name"], [0, 0])[0 if result["passed"] else 1] += 1

    def to_wire(self) -> dict[str, Any]:
        """`per_model_usage` and `per_testing_criteria_results` are empty until there are some."""
        return {
            "result_counts": {
                "total": self.passed + self.failed + self.errored,
                "errored": self.errored,
                "failed": self.failed,
                "passed": self.passed,
            },
            "per_model_usage": [_usage_to_wire(model, usage) for model, usage in self.usage.items()],
            "per_testing_criteria_results": [
                {"testing_criteria": name, "passed": passed, "failed": failed}
                for name, (passed, failed) in self.criteria.items()
            ],
        }


def _usage_to_wire(model: str, usage: ModelUsage) -> dict[str, Any]:
    return {
        "model_name": model,
        "invocation_count": usage.invocations,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An eval on one model, or on answers that are there."""

    id: str
    eval_id: str
    owner: str | None
    by_admin: bool
    """Whether that key had every right, or none was needed."""
    status: Status
    name: str
    metadata: dict[str, str] | None
    data_source: dict[str, Any]
    """As it was given."""
    created_at: int
    counts: Counts
    error: dict[str, str] | None = None

    @property
    def caller(self) -> Caller:
        """Who asks in it."""
        return in_background(self.owner, by_admin=self.by_admin)

    @property
    def source(self) -> Any:
        """What `data_source` says, as its body."""
        return RunBody.model_validate({"data_source": self.data_source}).data_source

    def to_wire(self) -> dict[str, Any]:
        return {
            "object": "eval.run",
            "id": self.id,
            "eval_id": self.eval_id,
            "report_url": f"/v1/evals/{self.eval_id}/runs/{self.id}/output_items",
            "status": self.status,
            "model": self.data_source.get("model") or "",
            "name": self.name,
            "created_at": self.created_at,
            **self.counts.to_wire(),
            "data_source": self.data_source,
            "metadata": self.metadata,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputItem:
    """What came of one row."""

    id: str
    run_id: str
    place: int
    """That of the row, from 0."""
    status: ItemStatus
    created_at: int
    datasource_item: dict[str, Any]
    results: list[dict[str, Any]]
    sample: dict[str, Any]

    def to_wire(self, eval_id: str) -> dict[str, Any]:
        return {
            "object": "eval.run.output_item",
            "id": self.id,
            "run_id": self.run_id,
            "eval_id": eval_id,
            "created_at": self.created_at,
            "status": self.status,
            "datasource_item_id": self.place,
            "datasource_item": self.datasource_item,
            "results": self.results,
            "sample": self.sample,
        }
