"""An upload, as it is kept and as OpenAI's API shows it."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engines.errors import Conflict
from server.files.files import FileObject, UploadPurpose

Status = Literal["pending", "completed", "cancelled"]
"""As it is kept: one that is pending has expired once its time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    id: str
    owner: str | None
    """Name of the key that made it; None: nobody's."""
    status: Status
    purpose: UploadPurpose
    filename: str
    bytes: int
    """Of the file that the parts are to become."""
    file_expires_after: int | None
    """Seconds from when it is completed."""
    created_at: int
    expires_at: int
    file_id: str | None = None
    """Once it is completed."""
    part_ids: str | None = None
    """A list in JSON: the parts that it was completed with."""

    @property
    def state(self) -> str:
        """OpenAI's status."""
        return "expired" if self.status == "pending" and self.expires_at <= time.time() else self.status

    def check_pending(self) -> None:
        """Raises Conflict."""
        if self.state != "pending":
            raise Conflict(f"The upload {self.id} is {self.state}, and cannot be changed any more.")

    def was_completed_with(self, part_ids: Sequence[str]) -> bool:
        return self.part_ids == json.dumps(part_ids)

    def to_wire(self, file: FileObject | None = None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "upload",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": self.state,
            **({} if file is None else {"file": file.to_wire()}),
        }
