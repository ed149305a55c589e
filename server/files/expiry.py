"""How long a file is kept, as a request says it, or unless it does."""

from typing import Literal

from pydantic import Field

from server.http.body import RequestBody

BATCH_SECONDS = 30 * 24 * 3600
"""OpenAI's, for the input of batches that does not say."""


class ExpiresAfter(RequestBody):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


def seconds_kept(purpose: str, given: ExpiresAfter | None) -> int | None:
    """Seconds after which an uploaded file of this purpose is gone; None: it stays."""
    if given is not None:
        return given.seconds
    return BATCH_SECONDS if purpose == "batch" else None
