"""What a batch has so far: two files that are only appended to, a whole line for each request that is done.

After a kill the last line of either may be cut: it is taken off, and its request done again.
"""

import os
import threading
from pathlib import Path
from typing import Any

import orjson

from server.batches.batch import Usage, usage_of
from server.store.ids import new_id


class Results:
    """Results of one batch, in its folder. Threads may add at once."""

    def __init__(self, folder: Path) -> None:
        """Reads what is there, which can take a while."""
        self.output = folder / "output.jsonl"
        self.errors = folder / "errors.jsonl"
        self._lock = threading.Lock()
        self.done: set[str] = set()
        """Custom ids of the requests that are done."""
        self.completed = 0
        self.failed = 0
        self.usage = Usage()
        for path in (self.output, self.errors):
            self._reconcile(path)

    def add_answer(self, custom_id: str, status: int, request_id: str, body: dict[str, Any]) -> None:
        """The request was answered, be it with an error. Raises OSError, and then nothing has been added."""
        path = self.output if status == 200 else self.errors
        self._append(
            path,
            {
                "id": new_id("batch_req_"),
                "custom_id": custom_id,
                "response": {"status_code": status, "request_id": request_id, "body": body},
                "error": None,
            },
        )

    def add_expired(self, custom_id: str) -> None:
        """The request was not answered in time. Raises OSError, and then nothing has been added."""
        message = "This request could not be executed before the completion window expired."
        self._append(
            self.errors,
            {
                "id": new_id("batch_req_"),
                "custom_id": custom_id,
                "response": None,
                "error": {"code": "batch_expired", "message": message},
            },
        )

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        with self._lock, path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while data:
                    data = data[os.write(file.fileno(), data) :]
            except OSError:
                file.truncate(before)
                raise
            self._count(line)

    def _count(self, line: dict[str, Any]) -> None:
        self.done.add(line["custom_id"])
        response = line["response"]
        if response is not None and response["status_code"] == 200:
            self.completed += 1
            self.usage += usage_of(response["body"])
        else:
            self.failed += 1

    def _reconcile(self, path: Path) -> None:
        """Count the lines that are whole, and take off what is not."""
        whole = 0
        with path.open("ab+") as file:
            file.seek(0)
            for data in file:
                if not data.endswith(b"\n"):
                    break
                self._count(orjson.loads(data))
                whole += len(data)
            file.truncate(whole)
