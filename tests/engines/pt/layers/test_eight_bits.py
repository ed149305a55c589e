"""Keys and values in 8 bits: those of plain transformers rounded alike, in half the memory, and nobody else's."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from engines.errors import UnsupportedModel
from engines.process.resources import GIB
from engines.pt.decoder import NativeDecoder
from engines.pt.layers.attention import KernelAttention, attend_gather
from engines.pt.layers.eight_bits import KINDS, EightBits
from engines.pt.runner import ModelRunner, Segment
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import TOLERANCE, Output, Reference, cache_of, core_of, prompt, request, run, settings
from tests.engines.pt.machines import LESSER_MACHINES, library_with
from tests.engines.pt.test_decoder import decodes, pages

NAMES = sorted(KINDS)


class RoundedCache(DynamicCache):
    """transformers' own, of keys and values that went through 8 bits."""

    def __init__(self, kind: EightBits) -> None:
        super().__init__()
        self._kind = kind

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        key, value = (self._kind.values(*self._kind.round(states)) for states in (key, value))
        found: tuple[Tensor, Tensor] = super().update(key, value, *args, **kwargs)
        return found


class Rounded(Reference):
    def __init__(self, exact: Reference, name: str) -> None:
        super().__init__(exact.model)
        self.exact = exact
        self._kind = KINDS[name]

    def logits(self, tokens: list[int]) -> Tensor:
        with torch.inference_mode():
            found: Tensor = self.model(torch.tensor([tokens]), past_key_values=RoundedCache(self._kind)).logits[0]
        return found.float()


@pytest.fixture
def rounded(reference: Callable[[str], Reference]) -> Callable[[str, str], Rounded]:
    return lambda model, name: Rounded(reference(model), name)


def check(chosen: ModelRunner, truth: Rounded) -> None:
    """That logprobs of prompts and answers are those of `truth`, up to what float32 has: and where a value lies between
    two bytes, it may take either."""
    asked = [request(prompt(20 + 9 * i, i), f"r{i}", logprobs=0, prompt_logprobs=0, ignore_eos=True) for i in range(3)]
    answers = run(core_of(chosen, max_num_batched_tokens=24), asked)
    off: list[float] = []
    unrounded: list[float] = []
    for one in asked:
        answer = answers[one.request_id]
        assert answer.first is not None and answer.first.prompt_logprobs is not None
        told = [*answer.first.prompt_logprobs[1:], *answer.outputs[0].logprobs]
        ids = one.prompt_ids + answer.tokens
        for logits, errors in ((truth.logits(ids), off), (truth.exact.logits(ids), unrounded)):
            rows = zip(told, ids[1:], logits.log_softmax(-1)[:-1], strict=True)
            errors += [abs(each.logprob - row[token].item()) for each, token, row in rows if each is not None]
    assert median(off) < TOLERANCE / 10 < TOLERANCE < median(unrounded)
    assert max(off) < max(unrounded) / 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["llama", "qwen2-window", "gemma2", "phi3"])
def test_answers_and_logprobs_are_those_of_transformers_with_keys_and_values_rounded_alike(
    runner: GetRunner, rounded: Callable[[str, str], Rounded], model: str, name: str
) -> None:
    chosen = runner(model, kv_cache_dtype=name)
    assert isinstance(chosen._decoder, NativeDecoder)
    check(chosen, rounded(model, name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("model", "attn_impl", "attend"), [("gpt2", None, KernelAttention), ("mistral", "eager", attend_gather)]
)
def test_so_they_are_where_modules_compute_the_model(
    runner: GetRunner, rounded: Callable[[str, str], Rounded], model: str, attn_impl: str | None, attend: Any, name: str
) -> None:
    chosen = runner(model, attn_impl=attn_impl, kv_cache_dtype=name)
    assert chosen._decoder is None and (chosen._attend is attend or type(chosen._attend) is attend)
    check(chosen, rounded(model, name))


@pytest.mark.parametrize("flags", [(), *LESSER_MACHINES.values()], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_rounds_as_torch_does_to_the_last_bit(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, flags: tuple[str, ...]
) -> None:
    library = library_with(*flags)
    monkeypatch.setattr("engines.pt.runner.build.load", lambda: library)
    exact, kept = (ModelRunner(settings(folder("qwen3"), kv_cache_dtype=each)) for each in ("auto", name))
    for each in (exact, kept):
        each.step([Segment(prompt(16), 0, [5, 2], 1)])
    for states, data, scales in (
        (exact.cache.keys[0], kept.cache.keys[0], kept.cache.key_scales[0]),
        (exact.cache.values[0], kept.cache.values[0], kept.cache.value_scales[0]),
    ):
        bytes_, each = KINDS[name].round(states[[5, 2]])
        assert torch.equal(data[[5, 2]], bytes_) and torch.equal(scales[[5, 2]], each.mT)


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_rounding_takes_the_nearest_and_keeps_what_is_no_number(kind: EightBits) -> None:
    heads = torch.tensor([[0.0, 0.0], [kind.most, 1.0], [-3.0, 3.0], [1e-44, -1e-44], [torch.inf, 1.0]])
    found = kind.values(*kind.round(heads))
    assert torch.equal(found[:3], heads[:3]) and found[3].abs().max() < 1e-30
    assert found[4].isnan().any()
    states = torch.randn(50, 64)
    errors = (kind.values(*kind.round(states)) - states).abs()
    step = states.abs().amax(-1, keepdim=True) / 127 / 2 if kind.dtype is torch.int8 else states.abs() / 16 + 1e-3
    assert (errors <= step * 1.0001).all()
    assert kind.values(*kind.round(torch.tensor([torch.nan, 1.0]))).isnan().all()


# ---- the promises of the cache


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_is_the_same_to_the_last_bit_whatever_is_beside_it(runner: GetRunner, dtype: str, name: str) -> None:
    chosen = runner("qwen3", dtype=dtype, kv_cache_dtype=name)
    alone = decodes(chosen, 0)
    assert all(torch.equal(decodes(chosen, beside), alone) for beside in (1, 31, 255))
    ids = prompt(100)
    whole = chosen.step([Segment(ids, 0, pages(1), 100)]).logits
    pieces = [
        chosen.step([Segment(ids[start:end], start, pages(2), end - start)]).logits
        for start, end in ((0, 1), (1, 37), (37, 38), (38, 100))
    ]
    assert torch.equal(torch.cat(pieces), whole)


def test_forks_prefixes_and_preempted_requests_answer_as_if_alone(runner: GetRunner) -> None:
    kept: dict[str, Any] = {"kv_cache_dtype": "int8_per_token_head"}
    start = prompt(30)
    asked = [
        request(start + prompt(i + 1, i), f"r{i}", n=2, temperature=1.0, seed=i, logprobs=1, ignore_eos=True,
                max_new_tokens=30)
        for i in range(4)
    ]  # fmt: skip
    alone = {one.request_id: run(core_of(runner("llama", **kept)), [one])[one.request_id].outputs for one in asked}
    few = runner("llama", kv_cache_memory=cache_of(24, runner("llama", **kept)), **kept)
    core = core_of(few)
    together = run(core, asked)
    assert core.stats().preemptions > 0 and core.stats().prefix_cache_hits > 0
    assert {name: answer.outputs for name, answer in together.items()} == alone
    again: dict[int, Output] = run(core, [asked[0]])["r0"].outputs
    assert again == alone["r0"]


def test_blocks_that_are_given_up_are_taken_again(runner: GetRunner) -> None:
    chosen = runner("llama", kv_cache_dtype="fp8_per_token_head")
    core, one = core_of(chosen), request(prompt(40), logprobs=1, ignore_eos=True)
    before = run(core, [one])["r"].outputs
    core.sleep()
    assert chosen.cache.tensors == []
    core.wake(10)
    assert run(core, [one])["r"].outputs == before


# ---- its size, and what is refused


def test_the_same_memory_holds_as_many_more_tokens_as_bytes_are_saved(folder: Callable[[str], Path]) -> None:
    given: dict[str, Any] = {"kv_cache_memory": 0.002, "max_num_seqs": 1000}
    exact, kept = (
        ModelRunner(settings(folder("llama"), kv_cache_dtype=name, **given)).cache
        for name in ("auto", "int8_per_token_head")
    )
    shape = exact.layers[0]
    dims = shape.key_dim + shape.value_dim
    assert kept.num_blocks / exact.num_blocks == pytest.approx(4 * dims / (dims + 8), rel=0.01)
    assert all(sum(each.nbytes for each in cache.tensors) <= 0.002 * GIB for cache in (exact, kept))


def test_a_kind_that_it_does_not_have_is_refused_with_those_that_it_has(folder: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedModel, match="which fp8 has not: choose int8_per_token_head or fp8_per") as refused:
        ModelRunner(settings(folder("llama"), kv_cache_dtype="fp8"))
    assert refused.value.param == "kv_cache_dtype"


def test_a_model_whose_keys_lose_too_much_is_refused(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = EightBits.values
    monkeypatch.setattr(EightBits, "values", lambda kind, data, scales: whole(kind, data // 64 * 64, scales))
    with pytest.raises(UnsupportedModel, match="with keys and values in int8_per_token_head: leave") as refused:
        ModelRunner(settings(folder("llama"), attn_impl="eager", kv_cache_dtype="int8_per_token_head"))
    assert refused.value.param == "kv_cache_dtype"
