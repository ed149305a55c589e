"""Batched LoRA against the formula, layer by layer, and against PEFT, whole models."""

import ctypes
import json
import platform
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from engines.adapters.spec import CONFIG, WEIGHTS
from engines.errors import InvalidAdapter
from engines.pt.core import EngineCore
from engines.pt.kernels import build
from engines.pt.linear import pack
from engines.pt.lora import Group, LoraEmbedding, LoraLinear, Step, read_weights, watching_calls
from engines.pt.low_rank import KERNELS, Kernel, Rows
from engines.pt.runner import ModelRunner
from tests.engines.pt.adapters import load, save_adapter, spec_of, with_peft
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import Reference, core_of, prompt, request, run, settings
from tests.engines.pt.test_parity import check
from tests.engines.pt.tiny import CONFIGS, VOCAB_SIZE, save

SLOTS = 5
RANKS = (4, 0, 1, 16, 7)
"""Of the adapters in the slots; 0: it leaves the layer alone."""

LESSER_MACHINES = {
    "kernel without AVX512-BF16": ("-mno-avx512bf16",),
    "kernel with AVX2 alone": ("-mno-avx512f",),
    "kernel with SSE alone": ("-mno-avx512f", "-mno-avx2", "-mno-fma"),
}
"""Flags that build the kernels for them."""


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest) -> ctypes.CDLL | None:
    """The kernel's library, or None for plain torch."""
    return request.getfixturevalue("library") if request.param == "kernel" else None


@pytest.fixture(params=["kernel", *LESSER_MACHINES], scope="module")
def machine(request: pytest.FixtureRequest, library: ctypes.CDLL) -> ctypes.CDLL:
    """The kernel's library for this machine, and for lesser ones of its kind."""
    if request.param == "kernel":
        return library
    if platform.machine() != "x86_64":
        pytest.skip("the flags are those of x86")
    found = build.load(*LESSER_MACHINES[request.param])
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def matrices(rank: int, inputs: int, outputs: int, **options: Any) -> tuple[Tensor, Tensor]:
    return torch.randn(rank, inputs, **options), torch.randn(rank, outputs, **options)


class Layer:
    """Linear layers with the same input, with an adapter of its own rank in every slot of each."""

    def __init__(
        self,
        library: ctypes.CDLL | None,
        inputs: int = 64,
        *outputs: int,
        ranks: Sequence[int] = RANKS,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        head: bool = False,
    ) -> None:
        outputs = outputs or (48,)
        self.library = library if dtype in KERNELS and device == "cpu" else None
        self.step = Step()
        self.bases = [nn.Linear(inputs, width, dtype=dtype, device=device) for width in outputs]
        paths = [f"layer.{number}" for number in range(len(outputs))]
        group = None
        if self.library is not None:
            group = Group(paths, Kernel(len(ranks), inputs, list(outputs), dtype, self.library))
        self.layers = [
            LoraLinear(path, base, self.step, head, len(ranks), group)
            for path, base in zip(paths, self.bases, strict=True)
        ]
        self.adapters = [
            [matrices(rank, inputs, width, dtype=dtype, device=device) if rank else None for rank in ranks]
            for width in outputs
        ]
        for layer, adapters in zip(self.layers, self.adapters, strict=True):
            for slot, adapter in enumerate(adapters):
                layer.write(slot, adapter, None)

    @property
    def layer(self) -> LoraLinear:
        return self.layers[0]

    def write(self, slot: int, rank: int) -> None:
        """Put another adapter of the first layer into a slot."""
        inputs, outputs = self.layer.in_features, self.layer.out_features
        self.adapters[0][slot] = matrices(rank, inputs, outputs) if rank else None
        self.layer.write(slot, self.adapters[0][slot], None)

    def all(self, x: Tensor, slots: list[int]) -> list[Tensor]:
        self.step.tokens = Rows(torch.tensor(slots, dtype=torch.int32, device=x.device), self.library)
        with torch.inference_mode():
            return [layer(x) for layer in self.layers]

    def __call__(self, x: Tensor, slots: list[int]) -> Tensor:
        return self.all(x, slots)[0]

    def by_hand(self, x: Tensor, slots: list[int], layer: int = 0) -> Tensor:
        """Computed in float32 from the output of the base layer on, and rounded to its type at the end."""
        y = self.bases[layer](x).detach().float()
        for row, slot in enumerate(slots):
            adapter = self.adapters[layer][slot] if slot >= 0 else None
            if adapter is not None:
                y[0, row] += x[0, row].float() @ adapter[0].float().T @ adapter[1].float()
        return y.to(x.dtype)


def some_slots(rows: int) -> list[int]:
    return torch.randint(-1, SLOTS, (rows,)).tolist()


# ---- layers alone


TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-3},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-3},  # one step of its last digit, where two sums fall on both sides
}


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9, 33, 150])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (64, 48), (33, 17), (100, 7), (577, 129)])
def test_each_row_gets_the_update_of_its_own_adapter(
    way: ctypes.CDLL | None, inputs: int, outputs: int, rows: int
) -> None:
    layer = Layer(way, inputs, outputs)
    x, slots = torch.randn(1, rows, inputs), some_slots(rows)
    torch.testing.assert_close(layer(x, slots), layer.by_hand(x, slots), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("inputs", [1, 31, 64, 577])
@pytest.mark.parametrize("ranks", [RANKS, (1,) * SLOTS, (33, 2, 0, 64, 17)], ids=str)
def test_on_every_machine_layers_with_the_same_input_are_computed_together(
    machine: ctypes.CDLL, dtype: torch.dtype, inputs: int, ranks: tuple[int, ...]
) -> None:
    layer = Layer(machine, inputs, 48, 1, 700, ranks=ranks, dtype=dtype)
    layer.layers[1].write(0, None, None)
    layer.adapters[1][0] = None
    for rows in (1, 7, 40):
        x, slots = torch.randn(1, rows, inputs, dtype=dtype), some_slots(rows)
        for number, found in enumerate(layer.all(x, slots)):
            torch.testing.assert_close(found, layer.by_hand(x, slots, number), **TOLERANCES[dtype])


@pytest.mark.parametrize("slots", [[3] * 20, [0] * 3 + [3] * 9 + [-1] * 2 + [3] * 6, [-1] * 20, [1] * 20])
def test_rows_of_one_adapter_beside_each_other(way: ctypes.CDLL | None, slots: list[int]) -> None:
    layer = Layer(way)
    x = torch.randn(1, 20, 64)
    torch.testing.assert_close(layer(x, slots), layer.by_hand(x, slots), rtol=1e-4, atol=1e-3)


def check_rows_alone(layer: Layer, x: Tensor) -> None:
    """Every row is the same to the last bit, alone and beside others."""
    rows = x.shape[1]
    slots = sorted(some_slots(rows))
    alone = torch.cat([layer(x[:, i : i + 1], slots[i : i + 1]) for i in range(rows)], dim=1)
    for first, last in ((0, rows), (0, 2), (1, 4), (7, 11), (13, rows - 1)):
        assert torch.equal(layer(x[:, first:last], slots[first:last]), alone[:, first:last])
    shuffled = torch.randperm(rows)
    assert torch.equal(layer(x[:, shuffled], [slots[i] for i in shuffled]), alone[:, shuffled])


@pytest.mark.parametrize("outputs", [48, 129])
def test_a_row_is_the_same_to_the_last_bit_whatever_rows_are_beside_it(library: ctypes.CDLL, outputs: int) -> None:
    layer = Layer(library, 577, outputs)
    pack(model := nn.Sequential(layer.layer.base), library)
    layer.layer.base = model[0]
    check_rows_alone(layer, torch.randn(1, 60, 577))


class RowByRow(nn.Module):
    """A layer whose rows do not depend on those beside them, as torch's own may in the last digit."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :1].repeat(1, 1, self.outputs)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_on_every_machine_a_row_does_not_depend_on_those_beside_it(machine: ctypes.CDLL, dtype: torch.dtype) -> None:
    layer = Layer(machine, 577, 129, 9, dtype=dtype)
    for one in layer.layers:
        one.base = RowByRow(one.out_features)
    check_rows_alone(layer, torch.randn(1, 60, 577, dtype=dtype))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_infinite_and_undefined_inputs_are_not_hidden(machine: ctypes.CDLL, dtype: torch.dtype) -> None:
    layer = Layer(machine, 577, 129, dtype=dtype)
    for value in (float("nan"), float("inf")):
        x = torch.zeros(1, 8, 577, dtype=dtype)
        x[0, 3, 5] = value
        y = layer(x, [3] * 8)
        assert not y[0, 3].isfinite().any()
        assert y[0, :3].isfinite().all() and y[0, 4:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes(way: ctypes.CDLL | None, dtype: torch.dtype) -> None:
    layer = Layer(way, dtype=dtype)
    x, slots = torch.randn(1, 30, 64, dtype=dtype), some_slots(30)
    expected = layer.by_hand(x, slots)
    found = layer(x, slots)
    assert found.dtype is dtype
    assert ((found - expected).norm() / expected.norm()).item() < 2e-2


def test_an_input_that_is_used_again_is_computed_again(library: ctypes.CDLL) -> None:
    layer = Layer(library, 64, 48, 9)
    x = torch.randn(1, 6, 64)
    for slots in ([3] * 6, [0] * 6):
        first, _ = layer.all(x, slots)
        assert torch.equal(layer(x, slots), first)
        torch.testing.assert_close(first, layer.by_hand(x, slots), **TOLERANCES[torch.float32])


def test_layers_of_which_only_some_are_adapted(library: ctypes.CDLL) -> None:
    layer = Layer(library, 64, 48, 9, 30, ranks=(0,) * SLOTS)
    group = Group(["layer.0", "layer.1", "layer.2"], Kernel(SLOTS, 64, [48, 9, 30], torch.float32, library))
    for number in (0, 2):
        layer.layers[number]._group = group
        layer.adapters[number][3] = matrices(5, 64, layer.bases[number].out_features)
        layer.layers[number].write(3, layer.adapters[number][3], None)
    layer.layers[1] = layer.bases[1]
    x, slots = torch.randn(1, 6, 64), [3, -1, 3, 0, 3, 3]
    for number, found in enumerate(layer.all(x, slots)):
        torch.testing.assert_close(found, layer.by_hand(x, slots, number), **TOLERANCES[torch.float32])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_cuda(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    layer = Layer(library, dtype=dtype, device="cuda")
    x, slots = torch.randn(1, 150, 64, dtype=dtype, device="cuda"), some_slots(150)
    expected = layer.by_hand(x, slots)
    assert ((layer(x, slots) - expected).norm() / expected.norm()).item() < 2e-2


def test_what_overflows_with_another_adapter_is_no_harm() -> None:
    layer = Layer(None, dtype=torch.float16)
    layer.layer.write(0, tuple(torch.full_like(m, 60000.0) for m in layer.adapters[0][0]), None)
    x, slots = torch.randn(1, 8, 64, dtype=torch.float16), [3] * 7 + [0]
    found = layer(x, slots)
    assert found[0, :7].isfinite().all() and not found[0, 7].isfinite().any()


def test_a_slot_that_is_written_again_keeps_nothing_of_what_was_in_it(way: ctypes.CDLL | None) -> None:
    layer, x = Layer(way), torch.randn(1, 9, 64)
    for rank in (2, 32, 0, 5):
        layer.write(3, rank)
        for slots in ([3] * 9, [0, 3, 2] * 3):
            torch.testing.assert_close(layer(x, slots), layer.by_hand(x, slots), rtol=1e-4, atol=1e-3)
    layer.write(3, 0)
    assert torch.equal(layer(x, [3] * 9), layer.layer.base(x))


def test_a_write_that_fails_half_way_leaves_nothing_for_the_next_one(way: ctypes.CDLL | None) -> None:
    layer, x = Layer(way), torch.randn(1, 9, 64)
    a, _ = matrices(12, 64, 48)
    with pytest.raises((RuntimeError, ValueError)):
        layer.layer.write(0, (a, torch.randn(3, 5)), None)
    layer.write(0, 2)
    torch.testing.assert_close(layer(x, [0] * 9), layer.by_hand(x, [0] * 9), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        (torch.randn(4, 63), torch.randn(4, 48)),
        (torch.randn(4, 64), torch.randn(3, 48)),
        (torch.randn(64, 4).T, torch.randn(4, 48)),
    ],
    ids=["inputs", "ranks", "strides"],
)
def test_the_kernel_takes_only_matrices_that_it_can_read(library: ctypes.CDLL, wrong: tuple[Tensor, Tensor]) -> None:
    layer, x = Layer(library), torch.randn(1, 9, 64)
    with pytest.raises(ValueError, match="matrices"):
        layer.layer.write(0, wrong, None)
    torch.testing.assert_close(layer(x, [0] * 9), layer.by_hand(x, [0] * 9), rtol=1e-4, atol=1e-3)


def test_a_layer_that_computes_in_another_dtype_than_its_adapters_fails(library: ctypes.CDLL) -> None:
    layer = Layer(library)
    layer.layer.base = nn.Linear(64, 48, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="bfloat16"):
        layer(torch.randn(1, 4, 64, dtype=torch.bfloat16), [0] * 4)


def test_a_stack_is_as_high_as_the_highest_rank_in_it() -> None:
    layer = Layer(None, ranks=(0,) * SLOTS)
    assert not layer.layer._stack
    for slot, rank, height in ((0, 3, 3), (1, 8, 8), (2, 5, 8), (1, 4, 5), (2, 0, 4), (1, 0, 3), (0, 0, 0)):
        layer.write(slot, rank)
        stack = layer.layer._stack
        assert stack is not None
        assert (stack.a.shape, stack.b.shape) == ((SLOTS, height, 64), (SLOTS, height, 48))
        x, slots = torch.randn(1, 8, 64), [0, 1, 2, -1, 0, 1, 2, 4]
        torch.testing.assert_close(layer(x, slots), layer.by_hand(x, slots), rtol=1e-4, atol=1e-3)


def test_a_slot_of_the_kernel_takes_no_memory_beside_the_adapters_own(library: ctypes.CDLL) -> None:
    layer = Layer(library)
    adapter = matrices(9, 64, 48)
    known = [weakref.ref(matrix) for matrix in adapter]
    layer.layer.write(1, adapter, None)
    assert layer.layer._group._kernel._a[1, 0] == adapter[0].data_ptr()
    del adapter
    assert all(matrix() is not None for matrix in known)
    layer.layer.write(1, None, None)
    assert all(matrix() is None for matrix in known)


@pytest.mark.parametrize("packed", [True, False])
def test_an_adapter_may_bring_a_weight_of_its_own(way: ctypes.CDLL | None, packed: bool) -> None:
    layer = Layer(way, head=True)
    if packed:
        pack(model := nn.Sequential(layer.layer.base), way)
        layer.layer.base = model[0]
    own, x = torch.randn(48, 64), torch.randn(1, 6, 64)
    layer.layer.write(0, layer.adapters[0][0], own)
    slots = [2, 0, -1, 0, 3, 0]
    layer.step.wanted = Rows(torch.tensor(slots, dtype=torch.int32), way)
    expected = layer.by_hand(x, slots)
    for row in (1, 3, 5):
        a, b = layer.adapters[0][0]
        expected[0, row] = nn.functional.linear(x[0, row], own, layer.layer.base.bias) + x[0, row] @ a.T @ b
    with torch.inference_mode():
        torch.testing.assert_close(layer.layer(x), expected, rtol=1e-4, atol=1e-3)


def test_a_layer_that_gets_other_rows_than_the_step_has_fails(way: ctypes.CDLL | None) -> None:
    with pytest.raises(RuntimeError, match="rows"):
        Layer(way)(torch.randn(1, 4, 64), [0, 1, 2])


def test_embeddings(library: ctypes.CDLL) -> None:
    table = nn.Embedding(50, 8)
    table.weight.data = table.weight.data.bfloat16().float()
    pack(model := nn.Sequential(table), library)
    step = Step()
    layer = LoraEmbedding(model[0], step)
    a, b, own = torch.randn(50, 4), torch.randn(4, 8), torch.randn(50, 8)
    layer.write(0, (a, b), None)
    layer.write(1, (a, b), own)
    ids = torch.tensor([[3, 49, 0, 3, 7]])
    step.tokens = Rows(torch.tensor([0, 1, -1, 2, 0], dtype=torch.int32), library)
    expected = table(ids).clone()
    expected[0, [0, 4]] += a[ids[0, [0, 4]]] @ b
    expected[0, 1] = own[49] + a[49] @ b
    with torch.inference_mode():
        torch.testing.assert_close(layer(ids), expected)
        layer.write(0, None, None)
        layer.write(1, None, None)
        assert torch.equal(layer(ids), table(ids))


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


# ---- whole models


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


# ---- what can be adapted, and what is refused


def test_a_model_says_which_of_its_layers_can_be_adapted(runner: GetRunner) -> None:
    support = runner("llama").lora.support
    assert support.linears["model.layers.1.mlp.down_proj"] == (48, 32)
    assert support.linears["lm_head"] == (32, VOCAB_SIZE)
    assert support.embeddings == {"model.embed_tokens": (VOCAB_SIZE, 32)}
    assert support.replaceable == {"model.embed_tokens", "lm_head"}
    assert len(support.linears) == 2 * 7 + 1
    assert runner("gpt2").lora.support.linears["transformer.h.0.attn.c_attn"] == (32, 96)


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
