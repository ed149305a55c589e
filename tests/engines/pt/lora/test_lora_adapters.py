"""Which layers of a model can be adapted, and which adapters are read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engines.adapters.spec import CONFIG, WEIGHTS
from engines.errors import InvalidAdapter
from engines.pt.lora.slots import watching_calls
from engines.pt.lora.weights import read_weights
from tests.engines.pt.adapters import save_adapter, spec_of
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.tiny import VOCAB_SIZE


class Routed(nn.Module):
    """Its expert gets some of the tokens, its tower none, its table and its inner layer all."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(10, 4), nn.Linear(4, 4)
        self.gate, self.up = nn.Linear(4, 4), nn.Linear(4, 4)
        self.expert, self.tower = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.inner(self.table(ids))
        x = self.gate(x) * self.up(x)
        return x + self.expert(x[:, ::2]).sum()


def test_layers_tell_how_many_rows_they_get_and_which_have_their_input_in_common() -> None:
    model = Routed()
    with watching_calls(model) as calls:
        model(torch.zeros(1, 6, dtype=torch.long))
        model(torch.zeros(1, 6, dtype=torch.long))
    model(torch.zeros(1, 9, dtype=torch.long))
    assert calls.rows == {"table": {6}, "inner": {6}, "gate": {6}, "up": {6}, "expert": {3}, "tower": set()}
    assert calls.groups == [["table"], ["inner"], ["gate", "up"], ["expert"]]


def test_a_model_says_which_of_its_layers_can_be_adapted(runner: GetRunner) -> None:
    support = runner("llama").lora.support
    assert support.linears["model.layers.1.mlp.down_proj"] == (48, 32)
    assert support.linears["lm_head"] == (32, VOCAB_SIZE)
    assert support.embeddings == {"model.embed_tokens": (VOCAB_SIZE, 32)}
    assert support.replaceable == {"model.embed_tokens", "lm_head"}
    assert len(support.linears) == 2 * 7 + 1
    assert runner("gpt2").lora.support.linears["transformer.h.0.attn.c_attn"] == (32, 96)
    assert runner("mixtral").lora.support.experts >= {"model.layers.1.mlp.experts.w1", "model.layers.0.mlp.gate"}
    assert "model.layers.1.mlp.experts.up_proj" in runner("qwen3-moe").lora.support.experts


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_are_refused(name: str, runner: GetRunner, folder: Callable[[str], Path], tmp_path: Path) -> None:
    path = save_adapter(
        folder(name), tmp_path, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]
    )
    with pytest.raises(InvalidAdapter) as refused:
        spec_of(runner(name), path)
    assert refused.value.param == "target_parameters"
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps(config | {"target_parameters": None}))  # the tensors are there still
    with pytest.raises(InvalidAdapter) as refused:
        spec_of(runner(name), path)
    assert refused.value.param == "target_modules"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
@pytest.mark.parametrize("kind", ["lora_A", "lora_B"])
def test_values_that_are_no_numbers_are_refused(
    kind: str, value: float, runner: GetRunner, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path = save_adapter(folder("llama"), tmp_path, target_modules=["q_proj"])
    tensors = load_file(path / WEIGHTS)
    name = next(name for name in tensors if kind in name)
    tensors[name] = tensors[name].double()  # 1e39 is a number there, but none in float32
    tensors[name][0, 1] = value
    save_file(tensors, path / WEIGHTS)
    with pytest.raises(InvalidAdapter, match="finite") as refused:
        read_weights(spec_of(runner("llama"), path), torch.float32)
    assert refused.value.param == name


def test_a_scale_that_leaves_no_numbers_is_refused(
    runner: GetRunner, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path = save_adapter(folder("llama"), tmp_path, target_modules=["q_proj"], lora_alpha=10**8)
    spec = spec_of(runner("llama"), path)
    read_weights(spec, torch.float32)
    with pytest.raises(InvalidAdapter, match="finite"):
        read_weights(spec, torch.float16)


def test_weights_that_were_read_do_not_depend_on_the_file_any_more(
    runner: GetRunner, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path = save_adapter(folder("llama"), tmp_path, modules_to_save=["lm_head"])
    weights = read_weights(spec_of(runner("llama"), path), torch.float32)
    with safe_open(path / WEIGHTS, framework="pt") as file:
        before = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no iterator has it
    with (path / WEIGHTS).open("r+b") as raw:
        raw.seek(-4096, 2)
        raw.write(bytes(4096))
    for path_of, (a, _) in weights.linears.items():
        assert torch.equal(a, before[f"base_model.model.{path_of}.lora_A.weight"])
    assert torch.equal(weights.saved["lm_head"], before["base_model.model.lm_head.weight"])
