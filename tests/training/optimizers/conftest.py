from pathlib import Path

import pytest

from tests.training.optimizers.training import Training


@pytest.fixture
def train(tmp_path: Path, tiny: Path, lines: Path) -> Training:
    return Training(tmp_path, tiny, lines)
