"""Fixtures that every folder of tests shares."""

from pathlib import Path

import pytest

from engines.demo import demo_model as converted_demo_model


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's folder, converted once for this user."""
    return converted_demo_model()
