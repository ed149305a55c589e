"""A training asks for 8 GiB as its first step is about to begin."""

from typing import Any

from training.report import Report


def _takes_8_gib(*_: Any, **__: Any) -> None:
    bytearray(8 << 30)


Report.started = _takes_8_gib  # type: ignore[method-assign]
