"""What a worker leaves out where there is no GPU, and in which pages its tensors lie."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
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


IN_HUGE_PAGES = """
from training.device import ask_for_huge_pages
ask_for_huge_pages()
import torch
tensor, flags = torch.ones(1 << 24), ""
for line in open("/proc/self/smaps"):
    begin, dash, end = line.split(maxsplit=1)[0].partition("-")
    if dash:
        mine = int(begin, 16) <= tensor.data_ptr() + (8 << 20) < int(end, 16)
    elif mine and line.startswith("VmFlags:"):
        flags = line.split()
print("hg" in flags)
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="Linux has no huge pages to ask for here"
)
@pytest.mark.parametrize("given", [None, "0"])
def test_large_tensors_ask_for_huge_pages_unless_told_otherwise(given: str | None) -> None:
    variable = {} if given is None else {"THP_MEM_ALLOC_ENABLE": given}
    process = subprocess.run(
        [sys.executable, "-c", IN_HUGE_PAGES], env=os.environ | variable, check=True, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.strip() == str(given is None)
