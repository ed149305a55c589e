"""HQQ, which lies beside the environment: where it is installed, transformers imports it in every process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "opt" / "hqq"


@contextmanager
def importable() -> Iterator[None]:
    """HQQ can be imported for a while. PEFT, which looks for it as it is imported itself, adapts none of its layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        try:
            yield
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "hqq"]:
                del sys.modules[name]
