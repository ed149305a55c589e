"""Liger's kernels: asked for where they can run, and never for the head and the loss, which are ours."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engines.errors import InvalidRequest, UnsupportedModel
from tests.engines.pt.tiny import CONFIGS
from training.params.sft import SftParams
from training.params.task import TASK
from training.refusals.supported import refusals
from training.trainers.weights.liger import apply_liger, check_liger

ASKED = SftParams(model="m", dataset=("d",), use_liger=True)


def test_without_the_package_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    task = TASK.validate_python({"task": "sft", "params": {"model": "m", "dataset": ["d"], "use_liger": True}})
    assert "liger-kernel" in dict(refusals(task))["use_liger"]


def test_without_a_gpu_it_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidRequest, match="GPU") as refused:
        check_liger(ASKED)
    assert refused.value.param == "use_liger"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_liger(ASKED)


def test_the_kernels_leave_head_and_loss_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _installed(monkeypatch, "llama")
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    apply_liger(model)
    assert asked == [(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})]


def test_a_model_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, "mamba")
    with pytest.raises(UnsupportedModel, match="no kernels for models of type llama"):
        apply_liger(AutoModelForCausalLM.from_config(CONFIGS["llama"]()))


def _installed(monkeypatch: pytest.MonkeyPatch, *types: str) -> list[Any]:
    """A package that takes note of what it is asked for, in place of Liger's."""
    asked: list[Any] = []
    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    modules[names[1]]._apply_liger_kernel_to_instance = lambda model, **settings: asked.append((model, settings))
    modules[names[2]].MODEL_TYPE_TO_APPLY_LIGER_FN = dict.fromkeys(types)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    return asked
