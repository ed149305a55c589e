"""A batch, as it is kept and as OpenAI's API shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from server.http.keys.caller import Caller, in_background

Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]  # fmt: skip
UNFINISHED: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")
TIMES: tuple[Status, ...] = (
    "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
)  # fmt: skip
"""Statuses of which the batch says when it got there, as `<status>_at`."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the requests that were answered."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    def to_wire(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


def usage_of(answer: Mapping[str, Any]) -> Usage:
    """What an answer of one of the endpoints says that it took: responses have names of their own for it."""
    usage = answer.get("usage") or {}
    read, said = (
        ("input_tokens", "output_tokens") if "input_tokens" in usage else ("prompt_tokens", "completion_tokens")
    )
    return Usage(
        input_tokens=usage.get(read, 0),
        cached_tokens=(usage.get(f"{read}_details") or {}).get("cached_tokens", 0),
        output_tokens=usage.get(said, 0),
        reasoning_tokens=(usage.get(f"{said}_details") or {}).get("reasoning_tokens", 0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A row of the table."""

    id: str
    status: Status
    endpoint: str
    input_file_id: str
    completion_window: str
    output_expires_after: int | None
    metadata: dict[str, str] | None
    owner: str | None
    """Name of the key that made it; None: nobody's."""
    by_admin: bool
    """Whether that key had every right, or none was needed."""
    created_at: int
    expires_at: int
    model: str | None = None
    errors: list[dict[str, Any]] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @property
    def caller(self) -> Caller:
        """Who asks in its requests."""
        return in_background(self.owner, by_admin=self.by_admin)

    def to_wire(self) -> dict[str, Any]:
        """As OpenAI has it: what there is not yet is left out, but for the metadata."""
        usage = Usage(self.input_tokens, self.cached_tokens, self.output_tokens, self.reasoning_tokens)
        optional = {
            "model": self.model,
            "errors": None if self.errors is None else {"object": "list", "data": self.errors},
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            **{f"{status}_at": getattr(self, f"{status}_at") for status in TIMES},
        }
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": usage.to_wire(),
            "metadata": self.metadata,
            **{name: value for name, value in optional.items() if value is not None},
        }
