"""How long a file is kept, as a request says it."""

from typing import Literal

from pydantic import Field

from server.http.body import RequestBody


class ExpiresAfter(RequestBody):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)
