"""Python graders in a process that can do nothing but compute."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from engines.process.children import kill_group
from training.rewards.graders.errors import GradeError

PROGRAM = Path(__file__).with_name("sandboxed.py")
START_SECONDS = 30.0
"""Seconds to start, with what the code imports."""
GRADE_SECONDS = 10.0
"""Seconds of one grade."""
MAX_ANSWER = 16 * 1024
"""Bytes of what the process answers."""


class Sandbox:
    """A grader's code in a process of its own, which is started when it is needed and again after it has died."""

    def __init__(self, source: str, *, seconds: float = GRADE_SECONDS) -> None:
        self._source = source
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def grade(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> float:
        """What the code returns. Raises GradeError, whatever the code does; no other grade sees it."""
        with self._lock:
            try:
                if self._child is not None and self._child.poll() is not None:
                    self._stop()  # it died between two grades, and owes no answer
                child = self._child or self._start()
                answer = _ask(child, [sample, item], self._seconds)
            except GradeError:
                self._stop()
                raise
        if not isinstance(grade := answer.get("grade"), float):
            raise GradeError("python_grader_runtime_error", str(answer.get("problem", "it answered in no known form")))
        return grade

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> "subprocess.Popen[bytes]":
        if sys.platform != "linux":
            raise GradeError("python_grader_server_error", "this system cannot isolate a process; Linux can")
        self._child = child = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            cwd="/",
            start_new_session=True,
        )
        try:
            ready = _ask(child, self._source, START_SECONDS)
        except GradeError as error:
            raise GradeError("python_grader_server_error", f"the process could not be isolated: {error}") from None
        if "ready" not in ready:
            raise GradeError("python_grader_server_error", "the process could not be isolated")
        return child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        kill_group(child.pid)
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


def _ask(child: "subprocess.Popen[bytes]", what: object, seconds: float) -> dict[str, Any]:
    """The process's answer to a line. Raises GradeError."""
    assert child.stdin is not None and child.stdout is not None
    deadline = time.monotonic() + seconds
    line = memoryview(json.dumps(what).encode() + b"\n")
    answer = bytearray()
    sending, reading = child.stdin.fileno(), child.stdout.fileno()
    os.set_blocking(sending, False)
    while True:
        if (left := deadline - time.monotonic()) <= 0:
            raise GradeError("python_grader_runtime_error", f"it took longer than {seconds:g} s")
        readable, writable, _ = select.select([reading], [sending] if line else [], [], left)
        if readable:
            if not (data := os.read(reading, 4096)):
                raise GradeError("python_grader_runtime_error", f"its process died{_reason(child)}")
            answer += data
            if answer.endswith(b"\n") and not line:
                return _parse(bytes(answer))
            if len(answer) > MAX_ANSWER:
                raise GradeError("python_grader_runtime_error", f"it wrote more than {MAX_ANSWER} bytes")
        elif writable:
            try:
                line = line[os.write(sending, line[: 1 << 16]) :]
            except BrokenPipeError:
                raise GradeError("python_grader_runtime_error", f"its process died{_reason(child)}") from None


def _reason(child: "subprocess.Popen[bytes]") -> str:
    with suppress(subprocess.TimeoutExpired):
        status = child.wait(1)
        return f" of signal {-status}" if status < 0 else f" with status {status}"
    return ""


def _parse(answer: bytes) -> dict[str, Any]:
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise GradeError("python_grader_runtime_error", "it answered in no known form")
    return said
