"""The check at start finds what the kernel, or transformers' modules on flat batches, would compute wrongly."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from engines.checkpoint import spans
from engines.errors import UnsupportedModel
from engines.pt import check, families
from engines.pt.decoder import NativeDecoder, Rows
from engines.pt.layers import attention
from engines.pt.runner import ModelRunner
from tests.engines.pt.driving import Reference, core_of, prompt, request, run, settings
from tests.engines.pt.tiny import CONFIGS, POSITIONS, VOCAB_SIZE, WINDOW, save
from tests.training.largest import largest_tensor

Break = Callable[[pytest.MonkeyPatch], None]


def change_layer(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Have the kernel be told something else of the last layer."""
    made = NativeDecoder.__init__

    def wrong(self: Any, *args: Any) -> None:
        made(self, *args)
        change(self._decoder.layers[self._decoder.num_layers - 1])

    monkeypatch.setattr(NativeDecoder, "__init__", wrong)


def change_rows(monkeypatch: pytest.MonkeyPatch, change: Callable[[Rows], None]) -> None:
    """Have a step get something else."""
    step = NativeDecoder.step

    def wrong(self: Any, rows: Rows, *args: Any, **options: Any) -> Any:
        change(rows)
        return step(self, rows, *args, **options)

    monkeypatch.setattr(NativeDecoder, "step", wrong)


def set_to(name: str, value: Any) -> Break:
    return lambda monkeypatch: change_layer(monkeypatch, lambda layer: setattr(layer, name, value))


def swap(one: str, other: str) -> Break:
    def change(layer: Any) -> None:
        kept = [getattr(layer, name) for name in (one, other)]
        kept = [type(each).from_buffer_copy(each) if isinstance(each, ctypes.Structure) else each for each in kept]
        for name, value in zip((other, one), kept, strict=True):
            setattr(layer, name, value)

    return lambda monkeypatch: change_layer(monkeypatch, change)


def turned_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(rows: Rows) -> None:
        for table in rows.table:
            table.reverse()

    change_rows(monkeypatch, change)


def one_table_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    change_rows(monkeypatch, lambda rows: rows.table.__setitem__(slice(None), [rows.table[0]] * len(rows.table)))


def late_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that comes alone sees one key too many, its own place's neighbour."""

    def change(rows: Rows) -> None:
        for row, sequence in enumerate(rows.sequences):
            rows.positions[row] += rows.sequences.count(sequence) == 1

    change_rows(monkeypatch, change)


def norms_without_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "weight_of", lambda norm: norm.weight.detach().float())


BROKEN: dict[str, tuple[str, Break]] = {
    "no window": ("mistral", set_to("window", 0)),
    "tables in another order": ("llama", turned_tables),
    "the table of another sequence": ("llama", one_table_for_all),
    "decodes at the wrong place": ("qwen3", late_decodes),
    "norms that forget the one": ("gemma2", norms_without_the_one),
    "no norm after the MLP": ("gemma2", set_to("mlp_after", None)),
    "gate and up exchanged": ("qwen2", swap("gate", "up")),
}
SLIGHTLY_BROKEN: dict[str, tuple[str, Break]] = {
    "a window one too wide": ("mistral", set_to("window", WINDOW + 1)),
    "norms that have each other's weights": ("llama", swap("attention_norm", "mlp_norm")),
    "scores of another scale": ("gemma3", set_to("scale", 0.3)),
    "scores without their cap": ("gemma2", set_to("softcap", 0.0)),
    "another layer's frequencies": ("gemma3", set_to("turn", 1)),
    "positions where there are none": ("smollm3", set_to("turn", 0)),
}
"""What may be within the precision of bfloat16."""


@pytest.mark.parametrize(
    ("broken", "dtype"),
    [*((name, "float32") for name in BROKEN | SLIGHTLY_BROKEN), *((name, "bfloat16") for name in BROKEN)],
)
def test_a_kernel_with_a_wrong_detail_is_found_and_not_used(
    broken: str, dtype: str, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, breaking = (BROKEN | SLIGHTLY_BROKEN)[broken]
    breaking(monkeypatch)
    chosen = ModelRunner(settings(folder(name), dtype=dtype))
    assert chosen._decoder is None
    assert "computes something else on flat batches than alone" in (chosen._reason or "")


def test_a_model_is_refused_where_its_modules_are_wrong_too(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_window(q: Tensor, layer: int, step: Any, scale: float, _: int, cap: float) -> Tensor:
        return attention.attend_gather(q, layer, step, scale, 0, cap)

    monkeypatch.setattr("engines.pt.runner.attention.choose", lambda *_: without_window)
    with pytest.raises(UnsupportedModel, match=r"MistralForCausalLM computes something else .* cannot run it"):
        ModelRunner(settings(folder("mistral"), attn_impl="eager"))


# ---- wide windows


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose window is wider than what the check computes."""
    config = CONFIGS["mistral"]()
    config.sliding_window = 100
    return save(config, tmp_path_factory.mktemp("wide"), tokenizer=True)


def test_a_wide_window_is_narrow_for_the_check_alone(wide: Path) -> None:
    chosen = ModelRunner(settings(wide))
    assert chosen._decoder is not None
    assert chosen.model.config.sliding_window == 100
    assert {shape.window for shape in chosen.cache.layers.values()} == {100}
    one = request(prompt(120), max_new_tokens=6, ignore_eos=True, logprobs=3)
    plain = AutoModelForCausalLM.from_pretrained(wide, attn_implementation="eager").eval()
    Reference(plain).check_greedy(one, run(core_of(chosen), [one])["r"].outputs[0])


def test_a_wide_window_that_the_kernel_ignores_is_found(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to("window", 0)(monkeypatch)
    assert ModelRunner(settings(wide))._decoder is None


# ---- what the engine is compared with


def test_a_bfloat16_model_is_compared_with_its_weights_in_float32(folder: Callable[[str], Path]) -> None:
    narrow, exact = (
        AutoModelForCausalLM.from_pretrained(folder("qwen3"), dtype=dtype, attn_implementation="eager").eval()
        for dtype in (torch.bfloat16, torch.float32)
    )
    plan = check.plan(VOCAB_SIZE, check.BLOCK_SIZE, POSITIONS)
    with torch.inference_mode():
        found, truth = (check.expected(model, plan, classifies=False) for model in (narrow, exact))
    assert check.deviation(found.results, truth.results) < 1e-5
    assert (found.tolerance, truth.tolerance) == (check.ROUNDED, check.EXACT)
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}
    assert check.can_widen(narrow)  # no hooks are left


def test_some_outputs_of_a_head_are_widened_at_a_time(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head's weights in float32 would take twice what the model has them in."""
    monkeypatch.setattr(spans, "VALUES", 256)
    narrow = AutoModelForCausalLM.from_pretrained(folder("llama"), dtype=torch.bfloat16).eval()
    with torch.inference_mode(), check.widened(narrow), largest_tensor(torch.float32) as largest:
        narrow(torch.tensor([[3]]))
    assert largest.numel <= VOCAB_SIZE  # the logits


def test_sequences_lie_in_more_than_three_blocks_and_pass_the_window() -> None:
    plan = check.plan(VOCAB_SIZE, check.BLOCK_SIZE, POSITIONS)
    assert [len(table) for table in plan.tables] == [4, 4]
    assert sorted(block for table in plan.tables for block in table) == list(range(8))
    assert all(table != sorted(table) for table in plan.tables)
    assert plan.window < len(plan.ids[0]) // 2
    for sequence in (0, 1):
        pieces = [piece for step in plan.steps for piece in step if piece.sequence == sequence]
        assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
        assert pieces[-1].end == len(plan.ids[sequence])
        assert any(piece.end - piece.start == 1 for piece in pieces)


@pytest.mark.parametrize("limit", [1, 8, 20, 52])
def test_a_model_of_few_positions_is_checked_within_them(limit: int) -> None:
    plan = check.plan(VOCAB_SIZE, check.BLOCK_SIZE, limit)
    assert {len(ids) for ids in plan.ids} == {max(limit, check.SHORTEST)}
    assert all(piece.start < piece.end for step in plan.steps for piece in step)
