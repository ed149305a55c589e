"""lm-evaluation-harness, which lies beside the environment: it brings scikit-learn, which transformers would import in
every process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "opt" / "eval"


@contextmanager
def importable() -> Iterator[None]:
    """It can be imported for a while. Skips where it is not installed (`make .venv/opt/eval/.ready`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        if find_spec("lm_eval") is None:
            pytest.skip("lm-evaluation-harness is not installed")
        patch.setenv("TQDM_DISABLE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
