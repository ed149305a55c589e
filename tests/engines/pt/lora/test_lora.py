"""Batched LoRA against PEFT: whole models."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engines.adapters.spec import WEIGHTS
from engines.pt.core import EngineCore
from engines.pt.lora.slots import LoraLinear
from engines.pt.runner import ModelRunner
from tests.engines.pt.adapters import load, save_adapter, spec_of, with_peft
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import Reference, core_of, prompt, request, run, settings
from tests.engines.pt.test_parity import check
from tests.engines.pt.tiny import CONFIGS, save

KINDS: dict[str, dict[str, Any]] = {
    "ranks of their own": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 9},
        "alpha_pattern": {"v_proj": 3, "down_proj": 20},
    },
    "rslora": {"use_rslora": True, "r": 8},
    "a few layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "embeddings": {"target_modules": ["embed_tokens", "o_proj"]},
    "head": {"target_modules": ["lm_head", "gate_proj"]},
    "embeddings and head": {"target_modules": ["embed_tokens", "lm_head"]},
    "own head": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    "own embeddings": {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]},
    "own embeddings and head": {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def check_kind(
    core: EngineCore, model: Path, config: dict[str, Any], plain: Reference, tmp_path: Path, *, merged: bool = True
) -> Path:
    """A batch of the base, of an adapter of this kind and of a usual one: each answer is PEFT's."""
    kind = save_adapter(model, tmp_path / "kind", seed=1, **config)
    usual = save_adapter(model, tmp_path / "usual", seed=2, r=6)
    load(core, kind=kind, usual=usual)
    asked = [
        request(prompt(11 + i, i), f"r{i}", adapter=(None, "kind", "usual")[i % 3], ignore_eos=True, logprobs=3)
        for i in range(9)
    ]
    answers = run(core, asked)
    truths = {None: plain, "kind": with_peft(model, kind, merged=merged), "usual": with_peft(model, usual)}
    for version, truth in truths.items():
        check(truth, [one for one in asked if one.adapter == version], answers)
    return kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_answers_as_in_peft(
    kind: str, runner: GetRunner, folder: Callable[[str], Path], reference: Callable[[str], Reference], tmp_path: Path
) -> None:
    check_kind(core_of(runner("llama")), folder("llama"), KINDS[kind], reference("llama"), tmp_path)


@pytest.mark.parametrize("kind", ["embeddings and head", "own embeddings and head"])
@pytest.mark.parametrize("name", ["gemma2", "granite"])
def test_what_is_scaled_or_capped_in_the_model_is_so_with_an_adapter(
    name: str,
    kind: str,
    runner: GetRunner,
    folder: Callable[[str], Path],
    reference: Callable[[str], Reference],
    tmp_path: Path,
) -> None:
    """Rows of the table, and logits."""
    check_kind(core_of(runner(name)), folder(name), KINDS[kind], reference(name), tmp_path, merged=False)


@pytest.mark.parametrize("kind", ["embeddings", "own embeddings", "own head", "head"])
def test_a_model_with_tied_embeddings(kind: str, tmp_path: Path, runner_of: Callable[..., ModelRunner]) -> None:
    config = CONFIGS["llama"]()
    config.tie_word_embeddings = True
    model = save(config, tmp_path / "model", tokenizer=True)
    plain = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
    check_kind(core_of(runner_of(model)), model, KINDS[kind], Reference(plain), tmp_path, merged=False)


@pytest.fixture
def runner_of() -> Callable[..., ModelRunner]:
    return lambda model, **changes: ModelRunner(settings(model, **changes))


def test_adapted_embeddings_bring_the_table_that_they_were_trained_on(
    runner: GetRunner, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """PEFT saves `embed_tokens.base_layer` beside them: it takes the place of the model's own."""
    path = save_adapter(folder("llama"), tmp_path, **KINDS["embeddings"])
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    tensors = load_file(path / WEIGHTS)
    tensors[name] = tensors[name] + 0.3 * torch.randn_like(tensors[name])
    save_file(tensors, path / WEIGHTS)
    spec = spec_of(runner("llama"), path)
    assert spec.saved == {"model.embed_tokens": name}
    core = core_of(runner("llama"))
    load(core, a=path)
    one = request(prompt(15), adapter="a", ignore_eos=True, logprobs=3)
    check(with_peft(folder("llama"), path), [one], run(core, [one]))


@pytest.mark.parametrize(
    ("name", "targets"), [("phi3", ["qkv_proj", "gate_up_proj"]), ("gpt2", ["c_attn", "wte", "wpe"])]
)
def test_fused_and_transposed_layers(
    name: str,
    targets: list[str],
    runner: GetRunner,
    folder: Callable[[str], Path],
    reference: Callable[[str], Reference],
    tmp_path: Path,
) -> None:
    check_kind(core_of(runner(name)), folder(name), {"target_modules": targets}, reference(name), tmp_path)


@pytest.mark.parametrize(
    "config",
    [{"modules_to_save": ["lm_head"]}, KINDS["ranks of their own"], KINDS["rslora"] | {"r": 33}],
    ids=["own head", "ranks of their own", "rslora"],
)
def test_a_bfloat16_model(
    config: dict[str, Any], folder: Callable[[str], Path], runner: GetRunner, tmp_path: Path
) -> None:
    """In its dtype the answers are near PEFT's; how near, its own rounding of the base model tells. Other adapters
    come and go beside it."""
    path = save_adapter(folder("llama"), tmp_path / "a", **config)
    core = core_of(runner("llama", dtype="bfloat16"))
    others = {name: save_adapter(folder("llama"), tmp_path / name, seed=8, r=r) for name, r in (("b", 1), ("c", 17))}
    load(core, a=path, b=others["b"])
    one = request(prompt(30), "one", adapter="a", max_new_tokens=0, prompt_logprobs=0)
    plain = AutoModelForCausalLM.from_pretrained(folder("llama"), dtype=torch.bfloat16, attn_implementation="eager")
    adapted = PeftModel.from_pretrained(plain, path, autocast_adapter_dtype=False).eval()
    with torch.inference_mode():
        logprobs = adapted(input_ids=torch.tensor([one.prompt_ids])).logits[0].float().log_softmax(-1)
    exact = with_peft(folder("llama"), path).logits(one.prompt_ids).log_softmax(-1)
    ids = torch.tensor(one.prompt_ids[1:])
    truth, theirs = (p[:-1].gather(1, ids[:, None])[:, 0] for p in (exact, logprobs))
    for other in ("b", "c"):
        if other == "c":
            core.adapters.unload("b")
            load(core, c=others["c"])
        beside = [request(prompt(9), "other", adapter=other), request(prompt(12), "base")]
        told = run(core, [beside[0], one, beside[1]])["one"].first.prompt_logprobs
        ours = torch.tensor([logprob.logprob for logprob in told[1:]])
        assert (ours - truth).norm() < 2 * (theirs - truth).norm()


class Counted:
    """A library that counts the calls of the kernel for float32."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._lora_add = library.lora_add_float
        self.calls = 0

    def lora_add_float(self, *args: object) -> Any:
        self.calls += 1
        return self._lora_add(*args)


def test_nothing_is_computed_where_no_request_uses_an_adapter(
    library: ctypes.CDLL, runner_of: Callable[..., ModelRunner], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    counted = Counted(library)
    own = runner_of(folder("opt"))  # whose layers are modules that call the kernel
    for group in set(own.lora._groups.values()):
        group._kernel._lora_add = counted.lora_add_float
    core = core_of(own)
    load(core, a=save_adapter(folder("opt"), tmp_path))
    run(core, [request(prompt(9), ignore_eos=True)])
    assert counted.calls == 0
    run(core, [request(prompt(9), adapter="a", max_new_tokens=1)])
    groups = 2 * 4
    assert counted.calls == groups


def test_a_model_is_not_touched_until_an_adapter_is_used(
    runner_of: Callable[..., ModelRunner], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    own = runner_of(folder("llama"))
    before = [type(module) for module in own.model.modules()]
    core = core_of(own)
    load(core, a=save_adapter(folder("llama"), tmp_path, target_modules=["q_proj"]))
    assert [type(module) for module in own.model.modules()] == before
    run(core, [request(prompt(9), adapter="a")])
    assert sum(isinstance(module, LoraLinear) for module in own.model.modules()) == 2


def test_without_a_kernel_the_model_answers_alike(
    runner_of: Callable[..., ModelRunner],
    folder: Callable[[str], Path],
    reference: Callable[[str], Reference],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engines.pt.runner.build.load", lambda: None)
    own = runner_of(folder("llama"))
    check_kind(core_of(own), folder("llama"), KINDS["rslora"], reference("llama"), tmp_path)
