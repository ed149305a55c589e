"""Gradients that are kept in bfloat16 until the optimizer takes them: a training that learns the same, bit by bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from tests.engines.pt.tiny import CONFIGS
from tests.training.jobs import losses, make_job
from training.params.rlhf import RlhfParams
from training.params.sft import SftParams
from training.pipelines import train as pipeline
from training.report import Report
from training.trainers.job import job
from training.trainers.weights import narrow
from training.trainers.weights.narrow import NarrowGradients, narrows
from training.trainers.weights.precision import Precision

IDS = torch.tensor([[1, 2, 3, 2, 2, 9], [7, 1, 1, 9, 3, 4]])
HALVED = Precision(torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16)
FULL: dict[str, Any] = {"model": "m", "train_type": "full"}


@pytest.fixture(autouse=True)
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "PIECE", 1 << 12)


def backward(model: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama", "mixtral", "qwen3"])
def test_steps_are_those_of_whole_gradients(family: str) -> None:
    torch.manual_seed(0)
    wide = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32).eval()
    model = copy.deepcopy(wide)
    kept = NarrowGradients(model)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2, fused=True) for each in (wide, model)]
    kept.given_to(optimizers[1])

    for _ in range(3):
        backward(wide)
        backward(model)
        types = {name: weight.grad.dtype for name, weight in model.named_parameters() if weight.grad is not None}
        assert kept.clip(0.5) == nn.utils.clip_grad_norm_(wide.parameters(), 0.5)
        for each in optimizers:
            each.step()
        assert all(weight.grad is None for weight in model.parameters())
        wide.zero_grad()

    assert {torch.bfloat16, torch.float32} == set(types.values())
    for weight, other in zip(model.parameters(), wide.parameters(), strict=True):
        assert torch.equal(weight, other)


class Widened(TorchDispatchMode):
    """While it lasts, counts what is cast to float32."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        self.count += function is torch.ops.aten._to_copy.default and named.get("dtype") == torch.float32
        return function(*args, **named)


def test_no_gradient_of_a_dense_layer_is_cast_back_after_the_first() -> None:
    layer = nn.Linear(8, 8, bias=False)
    model, weight = nn.Sequential(layer), layer.weight
    model.get_input_embeddings = lambda: None
    NarrowGradients(model)
    casts = []
    for _ in range(3):
        weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            loss = model(torch.randn(4, 8)).sum()
        assert layer.weight is weight
        with Widened() as widened:
            loss.backward()
        assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
        casts.append(widened.count)
    assert casts[0] > 0
    assert casts[1:] == [0, 0]


@pytest.mark.parametrize("twice", [False, True])
def test_a_sum_of_gradients_keeps_its_digits(twice: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, layer) if twice else nn.Sequential(layer)
    model.get_input_embeddings = lambda: None
    NarrowGradients(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        model(torch.randn(4, 8)).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == (torch.float32 if twice else torch.bfloat16)


@pytest.fixture
def trained(tmp_path: Path, tiny: Path, lines: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(*, narrowed: bool) -> tuple[dict[int, float], dict[str, Any]]:
        monkeypatch.setattr(job, "narrows", lambda *given: narrowed and narrows(*given))
        settings: dict[str, Any] = {"logging_steps": 1, "max_steps": 3, "learning_rate": 1e-3, "report_to": "none"}
        folder = make_job(
            tmp_path / f"{narrowed}",
            "sft",
            model=str(tiny),
            dataset=str(lines),
            train_type="full",
            bf16=True,
            **settings,
        )
        asked: Any = folder.read_task().params
        assert pipeline.run(asked, Report(folder)).status == "succeeded"
        checkpoint = folder.path / "checkpoint-3"
        kept = torch.load(checkpoint / "optimizer.pt")["state"]
        moments = {f"{number} {name}": each for number, state in kept.items() for name, each in state.items()}
        return losses(folder), load_file(checkpoint / "model.safetensors") | moments

    return run


def test_a_job_ends_with_the_same_weights_and_the_same_averages(trained: Any) -> None:
    (losses_wide, wide), (losses_narrow, narrowed) = trained(narrowed=False), trained(narrowed=True)
    assert losses_narrow == losses_wide
    assert wide.keys() == narrowed.keys()
    assert all(torch.equal(each, narrowed[name]) for name, each in wide.items())


def test_all_weights_of_a_model_that_learns_under_autocast_have_such_gradients() -> None:
    assert narrows(SftParams(**FULL), HALVED)


@pytest.mark.parametrize(
    "params",
    [
        SftParams(model="m"),  # whose weights are few
        SftParams(**FULL, gradient_accumulation_steps=2),
        SftParams(**FULL, optim="adafactor"),
        SftParams(**FULL, use_galore=True, galore_optim_per_parameter=True),
        SftParams(**FULL, deepspeed="zero1"),
        RlhfParams(**FULL, rlhf_type="ppo"),
    ],
)
def test_others_are_left_as_they_are(params: SftParams) -> None:
    assert not narrows(params, HALVED)


@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_so_are_those_of_other_types(autocast: torch.dtype | None) -> None:
    assert not narrows(SftParams(**FULL), Precision(torch.float32, torch.float32, autocast, torch.float32))
