"""Gradio, which lies in a folder of its own: it wants an older Pillow than the environment has."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engines.setup.install import pages_folder


@contextmanager
def importable() -> Iterator[None]:
    """It can be imported for a while, with the environment's own version of all else. Skips where it is not installed
    (`python -m engines.setup.install pages`)."""
    folder = pages_folder()
    if folder is None:
        pytest.skip("Gradio is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        yield
