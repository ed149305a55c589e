"""Jobs that no device can hold, told before they are queued."""

from typing import Any

import pytest

from training import floor
from training.floor import too_large
from training.params.sft import SftParams


@pytest.mark.parametrize(
    ("given", "weights", "refused"),
    [
        ({"train_type": "full"}, 6 << 30, "train_type"),  # 96 GiB
        ({"train_type": "full"}, 4 << 30, None),
        ({"train_type": "full", "freeze_parameters_ratio": 0.9}, 6 << 30, None),
        ({}, 41 << 30, "model"),
        ({}, 39 << 30, None),
        ({"quant_method": "bnb", "quant_bits": 4}, 41 << 30, None),
        ({"train_type": "full", "deepspeed": "zero3"}, 6 << 30, None),
        ({"train_type": "full", "fsdp": "full_shard"}, 6 << 30, None),
        ({}, None, None),
    ],
    ids=str,
)
def test_what_is_larger_than_every_device_is_refused(
    given: dict[str, Any], weights: int | None, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "largest_device", lambda: 80 << 30)

    error = too_large(SftParams(model="m", **given), weights)

    assert (error and error.param) == refused
    assert error is None or "no device here has more than 80" in error.message


def test_this_machine_has_a_device() -> None:
    assert floor.largest_device() > 1 << 28
