"""What every folder of tests shares."""

from pathlib import Path

import pytest
from hypothesis import settings

from engines.demo import demo_model as converted_demo_model

# The same examples every time, however slow the machine.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's folder, converted once for this user."""
    return converted_demo_model()
