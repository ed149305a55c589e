"""What a worker leaves out where there is no GPU."""

import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

from training import device


@pytest.mark.parametrize("gpu", [False, True])
def test_triton_is_there_for_gpus_only(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "accelerated", lambda: gpu)
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.delitem(sys.modules, "triton")  # as it is in a process that has imported nothing yet
    device.leave_out_triton()
    assert ("triton" in sys.modules and find_spec("triton") is None) != gpu
