"""Decoders that are computed in one call of C: which these are, and that a row's numbers are its own alone.

That they are those of plain transformers is in test_parity.py, test_runner.py and test_lora.py, for every model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from engines.checkpoint.quantization import Quantization
from engines.pt.decoder import NativeDecoder
from engines.pt.layers.quantized_linear import QuantizedLinear
from engines.pt.lora.weights import read_weights
from engines.pt.runner import ModelRunner, Segment
from tests.engines.pt.adapters import save_adapter, spec_of
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import BLOCK_SIZE, Reference, core_of, prompt, request, run, settings
from tests.engines.pt.machines import LESSER_MACHINES, library_with
from tests.engines.pt.tiny import CONFIGS, POSITIONS, SIZES, save

KNOWN = (
    *("llama", "mistral", "qwen2", "qwen2-window", "qwen3", "gemma", "gemma2", "gemma3"),
    *("phi3", "granite", "olmo2", "olmo3", "smollm3"),
)
BLOCKS = POSITIONS // BLOCK_SIZE
"""Of the longest sequence."""


def pages(number: int) -> list[int]:
    """The blocks of one of several sequences, not in their order."""
    return [number * BLOCKS + (5 * i + 3) % BLOCKS for i in range(BLOCKS)]


def decodes(chosen: ModelRunner, beside: int, *, slot: int = -1, others: Sequence[int] = (-1,)) -> Tensor:
    """(vocab_size,) logits of one decode after 40 tokens, in a step with `beside` rows of other sequences, which use
    the slots `others` in turn."""
    ids = prompt(41)
    chosen.step([Segment(ids[:40], 0, pages(0), 0, slot)])
    neighbours: list[Segment] = []
    for number in range(1, 9):
        length = min(POSITIONS, beside - sum(len(segment.token_ids) for segment in neighbours))
        if length > 0:
            neighbours.append(Segment(prompt(length, number), 0, pages(number), 1, others[number % len(others)]))
    own = Segment(ids[40:], 40, pages(0), 1, slot)
    half = len(neighbours) // 2
    return chosen.step([*neighbours[:half], own, *neighbours[half:]]).logits[half]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "phi3", "olmo3"])
def test_a_row_is_the_same_to_the_last_bit_whatever_rows_are_beside_it(
    runner: GetRunner, folder: Callable[[str], Path], tmp_path: Path, name: str, dtype: str
) -> None:
    chosen = runner(name, dtype=dtype, max_loras=2)
    for slot in range(2):
        spec = spec_of(chosen, save_adapter(folder(name), tmp_path / str(slot), seed=slot))
        chosen.lora.write(slot, read_weights(spec, chosen.dtype))
    for slot in (-1, 0):
        alone = decodes(chosen, 0, slot=slot)
        for beside in (1, 6, 31, 255):
            for others in (-1, 0, 1):
                assert torch.equal(decodes(chosen, beside, slot=slot, others=[others]), alone)


def test_so_it_is_where_rows_fill_tiles_and_those_of_several_adapters_share_them(tmp_path: Path) -> None:
    """Ranks are odd, more than a tile takes, and such as leave room for another's."""
    folder = save(LlamaConfig(**SIZES | {"hidden_size": 64, "intermediate_size": 160}), tmp_path / "model")
    chosen = ModelRunner(settings(folder, dtype="bfloat16", max_loras=4))
    assert chosen._decoder is not None
    for slot, rank in enumerate((5, 33, 20, 8)):
        config = {"r": rank, "rank_pattern": {"k_proj": 2, "up_proj": rank + 1}}
        spec = spec_of(chosen, save_adapter(folder, tmp_path / str(slot), seed=slot, **config))
        chosen.lora.write(slot, chosen.lora.laid_out(read_weights(spec, chosen.dtype)))
    for slot in (-1, 0, 1):
        alone = decodes(chosen, 0, slot=slot)
        for beside in (1, 14, 15, 16, 31, 255, 270):
            assert torch.equal(decodes(chosen, beside, slot=slot, others=[-1, 0, 1, 2, 3]), alone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_number_of_threads_changes_no_bit(folder: Callable[[str], Path], tmp_path: Path, dtype: str) -> None:
    """More threads than cores, too: they wait asleep for one another, and for the products with an adapter's A."""
    adapter = save_adapter(folder("llama"), tmp_path, seed=1)
    found = []
    try:
        for threads in (1, 2, 5):
            chosen = ModelRunner(settings(folder("llama"), threads=threads, dtype=dtype, max_loras=1))
            chosen.lora.write(0, read_weights(spec_of(chosen, adapter), chosen.dtype))
            found.append([decodes(chosen, 30, slot=slot, others=[0]) for slot in (-1, 0)])
    finally:
        torch.set_num_threads(1)
    assert not torch.equal(*found[0])
    assert all(torch.equal(torch.stack(found[0]), torch.stack(other)) for other in found[1:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [None, 1100])
def test_threads_share_a_long_row_and_change_no_bit(tmp_path: Path, dtype: str, window: int | None) -> None:
    """Alone, beside another row, and as the last of a prompt."""
    config = MistralConfig(**SIZES | {"max_position_embeddings": 2048}, sliding_window=window)
    folder, ids, blocks = save(config, tmp_path), prompt(1600), list(range(200))
    found = []
    try:
        for threads in (1, 3):
            chosen = ModelRunner(settings(folder, threads=threads, dtype=dtype, max_num_seqs=3))
            found.append(chosen.step([Segment(ids, 0, blocks, 1)]).logits[0])
            last = Segment(ids[1599:], 1599, blocks, 1)
            found.append(chosen.step([last]).logits[0])
            found.append(chosen.step([Segment(prompt(3), 0, [200], 1), last]).logits[1])
            for length in (6, 24, 100):
                found.append(chosen.step([Segment(ids[-length:], 1600 - length, blocks, 1)]).logits[0])
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", ["mistral", "gemma3", "phi3", "granite"])
def test_a_prompt_in_pieces_gives_what_it_gives_at_once(runner: GetRunner, name: str) -> None:
    chosen, ids = runner(name, dtype="bfloat16"), prompt(100)
    whole = chosen.step([Segment(ids, 0, pages(1), 100)]).logits
    ends = [1, 8, 37, 38, 77, 100]
    pieces = [
        chosen.step([Segment(ids[start:end], start, pages(2), end - start)]).logits
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("flags", LESSER_MACHINES.values(), ids=str)
@pytest.mark.parametrize("name", ["qwen2-window", "gemma2", "phi3", "olmo3"])
def test_lesser_machines_give_the_same_answers(
    folder: Callable[[str], Path],
    reference: Callable[[str], Reference],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    flags: tuple[str, ...],
) -> None:
    library = library_with(*flags)
    monkeypatch.setattr("engines.pt.runner.build.load", lambda: library)
    chosen = ModelRunner(settings(folder(name)))
    assert chosen._decoder is not None
    asked = [request(prompt(30 + i, i), f"r{i}", logprobs=3, ignore_eos=True) for i in range(3)]
    answers = run(core_of(chosen), asked)
    for one in asked:
        reference(name).check_greedy(one, answers[one.request_id].outputs[0])


# ---- which models these are


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", KNOWN)
def test_the_known_kinds_are_computed_in_one_call(runner: GetRunner, name: str, dtype: str) -> None:
    assert runner(name, dtype=dtype)._decoder is not None


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in CONFIGS if name not in KNOWN), ("llama", {"attn_impl": "eager"})],
    ids=str,
)
def test_all_others_by_their_modules(runner: GetRunner, name: str, changes: dict[str, str]) -> None:
    assert runner(name, **changes)._decoder is None


def test_weights_of_more_digits_than_bfloat16_has_by_their_modules(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert ModelRunner(settings(save(CONFIGS["llama"](), tmp_path, digits="float32")))._decoder is None
    assert "LlamaForCausalLM is computed by transformers' modules: its embeddings are not bfloat16" in caplog.text


def test_a_kernel_that_computes_something_else_is_not_used(
    folder: Callable[[str], Path],
    reference: Callable[[str], Reference],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    step = NativeDecoder.step

    def wrong(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        logits, hidden = step(*args, **options)
        return logits + 1.0, hidden

    monkeypatch.setattr(NativeDecoder, "step", wrong)
    chosen = ModelRunner(settings(folder("llama")))
    assert chosen._decoder is None
    assert "LlamaForCausalLM computes something else on flat batches than alone" in caplog.text
    one = request(prompt(20), logprobs=1, ignore_eos=True)
    reference("llama").check_greedy(one, run(core_of(chosen), [one])["r"].outputs[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3"])
def test_weights_that_are_written_take_the_place_of_the_old(
    folder: Callable[[str], Path], tmp_path: Path, name: str, dtype: str
) -> None:
    other = save(CONFIGS[name](), tmp_path, seed=1)
    written, fresh = (ModelRunner(settings(path, dtype=dtype)) for path in (folder(name), other))
    written.write(AutoModelForCausalLM.from_pretrained(other).state_dict())
    assert written._decoder is not None
    assert torch.equal(decodes(written, 3), decodes(fresh, 3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_with_weights_that_are_integers_a_row_is_the_same_whatever_is_beside_it(
    folder: Callable[[str], Path], tmp_path: Path, bits: int, dtype: str
) -> None:
    kept = Quantization(method="torchao", bits=bits)
    chosen = ModelRunner(settings(folder("qwen2"), dtype=dtype, quantization=kept, max_loras=2))
    assert type(chosen._decoder) is NativeDecoder
    assert {type(layer.mlp.down_proj) for layer in chosen.model.model.layers} == {QuantizedLinear}
    chosen.lora.write(0, read_weights(spec_of(chosen, save_adapter(folder("qwen2"), tmp_path)), chosen.dtype))
    for slot in (-1, 0):
        alone = decodes(chosen, 0, slot=slot)
        for beside in (1, 6, 31, 255):
            assert torch.equal(decodes(chosen, beside, slot=slot), alone)
