"""What a worker imports before a training."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.training.jobs import make_data, make_model, trained
from training.imports import left_out, short_imports

BITSANDBYTES = """
import gc, sys
from training.imports import short_imports
with short_imports():
    import bitsandbytes
print("torch._inductor.compile_fx" in sys.modules, gc.isenabled())
"""


def test_bitsandbytes_loads_no_compiler() -> None:
    pytest.importorskip("bitsandbytes")
    told = subprocess.run([sys.executable, "-c", BITSANDBYTES], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "True"]


def test_what_is_compiled_meanwhile_is_so_once_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[object, dict[str, object]]] = []

    def compile(function: object, **options: object) -> object:
        compiled.append((function, options))
        return function

    monkeypatch.setattr(torch, "compile", compile)

    def double(number: int) -> int:
        return 2 * number

    with short_imports():
        plain, decorated = torch.compile(double), torch.compile(dynamic=True)(double)
        assert torch.compile(module := torch.nn.Identity()) is module
    assert torch.compile is compile
    assert compiled == [(module, {})]
    assert [plain(2), plain(3), decorated(4)] == [4, 6, 8]
    assert plain.__name__ == "double"
    assert compiled == [(module, {}), (double, {}), (double, {"dynamic": True})]


def test_a_training_without_deepspeed_imports_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = make_model(tmp_path / "model"), make_data(tmp_path / "data.jsonl")
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    trained(tmp_path / "job", "sft", model=str(model), dataset=[str(data)], max_steps=1, report_to="none")

    assert "deepspeed" not in sys.modules


def test_a_package_is_left_out_for_a_while_unless_it_is_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with left_out("colorsys"):
        assert find_spec("colorsys") is None
        with pytest.raises(ImportError):
            import colorsys
    import colorsys

    with left_out("colorsys"):
        assert sys.modules["colorsys"] is colorsys
