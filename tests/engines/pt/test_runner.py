"""A model that cannot be run as asked is refused at start, with the reason; what can be asked for is honoured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3NextConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from engines.errors import UnsupportedModel
from engines.process.resources import GIB
from engines.pt.layers import rope
from engines.pt.layers.attention import KernelAttention, attend_gather, attend_varlen
from engines.pt.layers.linear import PackedLinear, WideningLinear
from engines.pt.runner import ModelRunner, Segment
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import BLOCK_SIZE, Reference, cache_of, core_of, prompt, request, run, settings
from tests.engines.pt.tiny import CONFIGS, POSITIONS, SIZES, VOCAB_SIZE, save

REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "mamba": (
        MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, state_size=4),
        "layers of kind linear_attention",
    ),
    "linear attention": (
        Qwen3NextConfig(
            **SIZES,
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        "layers of kind linear_attention",
    ),
    "own attention": (BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4), "BloomForCausalLM"),
    "attention sinks": (
        GptOssConfig(**SIZES, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
        "attention sinks",
    ),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_an_architecture_without_plain_attention_is_refused(kind: str, tmp_path: Path) -> None:
    config, reason = REFUSED[kind]
    save(config, tmp_path)
    with pytest.raises(UnsupportedModel, match=reason):
        ModelRunner(settings(tmp_path))


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=VOCAB_SIZE, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="t5 is an encoder-decoder"):
        ModelRunner(settings(tmp_path))


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"the configuration of model .* cannot be loaded") as refused:
        ModelRunner(settings(tmp_path))
    assert refused.value.param == "model"


def test_a_folder_without_weights_is_refused(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    (tmp_path / "config.json").write_bytes((folder("llama") / "config.json").read_bytes())
    with pytest.raises(UnsupportedModel, match="the weights of model"):
        ModelRunner(settings(tmp_path))


def test_broken_weights_are_refused(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    for path in folder("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UnsupportedModel, match="the weights of model"):
        ModelRunner(settings(tmp_path))


@pytest.mark.parametrize(
    ("asked", "param", "reason"),
    [
        ({"max_model_len": POSITIONS + 1}, "max_model_len", "beyond the model's 128 positions"),
        ({"attn_impl": "flash_attn"}, "attn_impl", "flash_attn needs a CUDA device"),
        ({"rope_scaling": "linear"}, "rope_scaling", "max_length"),
        ({"kv_cache_memory": 1e-9}, "kv_cache_memory", "do not hold one block"),
        ({"device_map": "cuda"}, "device_map", "cuda"),
        ({"device_map": "nonsense"}, "model", "nonsense"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(
    folder: Callable[[str], Path], asked: dict[str, Any], param: str, reason: str
) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as refused:
        ModelRunner(settings(folder("llama"), **asked))
    assert refused.value.param == param


def test_rotary_positions_cannot_be_stretched_where_there_are_none(folder: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedModel, match="no single set of rotary embeddings"):
        ModelRunner(settings(folder("gpt2"), rope_scaling="linear", max_model_len=256))


OWN_SCALINGS = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
}


@pytest.mark.parametrize("own", list(OWN_SCALINGS))
def test_a_scaling_that_the_model_was_trained_with_is_not_replaced(own: str, tmp_path: Path) -> None:
    scaling = {"rope_type": own, "rope_theta": 10000.0, "original_max_position_embeddings": POSITIONS // 4}
    save(LlamaConfig(**SIZES, rope_parameters=scaling | OWN_SCALINGS[own]), tmp_path)
    with pytest.raises(UnsupportedModel, match=f"rope_scaling linear would replace the model's own, {own}") as refused:
        ModelRunner(settings(tmp_path, rope_scaling="linear", max_model_len=2 * POSITIONS))
    assert refused.value.param == "rope_scaling"


def test_a_cache_that_does_not_hold_the_context_asked_for_is_refused(
    folder: Callable[[str], Path], runner: GetRunner
) -> None:
    memory = cache_of(7, runner("llama"))
    with pytest.raises(UnsupportedModel, match="the cache holds 56 tokens, less than the max_model_len of 64"):
        ModelRunner(settings(folder("llama"), kv_cache_memory=memory, max_model_len=64))


def test_a_context_that_nobody_asked_for_is_shortened_to_the_cache(
    folder: Callable[[str], Path], runner: GetRunner
) -> None:
    short = ModelRunner(settings(folder("llama"), kv_cache_memory=cache_of(7, runner("llama"))))
    assert short.max_model_len == 56


# ---- what is honoured


def test_the_cache_is_of_the_size_asked_for(folder: Callable[[str], Path]) -> None:
    runner = ModelRunner(settings(folder("llama"), kv_cache_memory=0.001, max_num_seqs=1000))
    tensors = (*runner.cache.keys.values(), *runner.cache.values.values())
    assert 0.0009 * GIB < sum(tensor.nbytes for tensor in tensors) <= 0.001 * GIB


def test_the_cache_never_holds_more_than_the_sequences_can_fill(folder: Callable[[str], Path]) -> None:
    assert ModelRunner(settings(folder("llama"), max_num_seqs=3)).cache.num_blocks == 3 * POSITIONS // 8


@pytest.mark.parametrize(
    ("attn_impl", "attend"), [(None, KernelAttention), ("sdpa", attend_gather), ("eager", attend_gather)]
)
@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_every_attention_gives_the_same_answers(
    runner: GetRunner, reference: Callable[[str], Reference], name: str, attn_impl: str | None, attend: Any
) -> None:
    chosen = runner(name, attn_impl=attn_impl)
    assert chosen._attend is attend or type(chosen._attend) is attend
    asked = [request(prompt(30 + i, i), f"r{i}", logprobs=3, ignore_eos=True) for i in range(3)]
    answers = run(core_of(chosen), asked)
    for one in asked:
        reference(name).check_greedy(one, answers[one.request_id].outputs[0])


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_map_is_honoured(
    runner: GetRunner, reference: Callable[[str], Reference], device_map: dict[str, Any] | str
) -> None:
    chosen = runner("llama", device_map=device_map)
    assert chosen.device.type == "cpu" or torch.cuda.is_available()
    one = request(prompt(20), logprobs=1, ignore_eos=True)
    reference("llama").check_greedy(one, run(core_of(chosen), [one])["r"].outputs[0])


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3-moe", "gpt2"])
def test_bfloat16_answers_within_its_precision(
    runner: GetRunner, reference: Callable[[str], Reference], name: str
) -> None:
    chosen = runner(name, dtype="bfloat16")
    assert chosen.dtype is torch.bfloat16
    assert chosen.cache.keys[0].dtype is torch.bfloat16
    one = request(prompt(24), prompt_logprobs=0, max_new_tokens=1)
    told = run(core_of(chosen), [one])["r"].first.prompt_logprobs[1:]
    truth = reference(name).logits(one.prompt_ids)[:-1].log_softmax(-1)
    errors = [abs(t.logprob - row[t.token_id].item()) for t, row in zip(told, truth, strict=True)]
    assert sum(errors) / len(errors) < 0.25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "qwen3-moe"])
def test_on_cuda_flash_attention_answers_within_its_precision(
    runner: GetRunner, reference: Callable[[str], Reference], name: str, dtype: str
) -> None:
    chosen = runner(name, dtype=dtype, block_size=None)
    assert (chosen.device.type, chosen._attend) == ("cuda", attend_varlen)
    asked = [request(prompt(20 + i, i), f"r{i}", prompt_logprobs=0, max_new_tokens=4) for i in range(3)]
    answers = run(core_of(chosen, block_size=None), asked)
    for one in asked:
        first = answers[one.request_id].first
        assert first is not None and first.prompt_logprobs is not None
        truth = reference(name).logits(one.prompt_ids)[:-1].log_softmax(-1)
        told = zip(first.prompt_logprobs[1:], truth, strict=True)
        errors = [abs(t.logprob - row[t.token_id].item()) for t, row in told if t is not None]
        assert sum(errors) / len(errors) < 0.25


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "granite", "olmo2", "smollm3", "gpt-neox"]
)
def test_bfloat16_answers_are_nearer_to_float32_than_those_of_plain_transformers(
    runner: GetRunner, reference: Callable[[str], Reference], folder: Callable[[str], Path], name: str
) -> None:
    ids = prompt(60)
    truth = reference(name).logits(ids)[:-1].log_softmax(-1)
    plain = AutoModelForCausalLM.from_pretrained(folder(name), dtype=torch.bfloat16, attn_implementation="eager")
    with torch.inference_mode():
        logits = plain(torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
        theirs = (logits.log_softmax(-1) - truth).abs().mean().item()
    chosen = runner(name, dtype="bfloat16")
    found = chosen.step([Segment(ids, 0, list(range(-(-len(ids) // BLOCK_SIZE))), len(ids))]).logits
    assert (found.dtype, chosen.cache.keys[0].dtype) == (torch.float32, torch.bfloat16)
    assert (found[:-1].log_softmax(-1) - truth).abs().mean().item() < theirs


def test_the_checkpoints_dtype_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.checkpoint.loading._cpu_computes", lambda dtype: True)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert ModelRunner(settings(tmp_path, dtype=None, device_map="cpu")).dtype is torch.bfloat16


@pytest.mark.parametrize(("digits", "kind"), [("bfloat16", WideningLinear), ("float32", PackedLinear)])
def test_bfloat16_weights_stay_narrow_and_others_wide_for_the_same_answers(
    tmp_path: Path, digits: str, kind: type[nn.Module]
) -> None:
    save(CONFIGS["llama"](), tmp_path, digits=digits)
    chosen = ModelRunner(settings(tmp_path))
    assert type(chosen.model.get_output_embeddings()) is kind
    one = request(prompt(24), max_new_tokens=16, ignore_eos=True, logprobs=5)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    Reference(plain).check_greedy(one, run(core_of(chosen), [one])["r"].outputs[0])


# ---- positions


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_stretched_positions_are_transformers_own(folder: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """The model's own config with the same scaling says the same; `dynamic` as for a text of the whole length."""
    length = 2 * POSITIONS
    runner = ModelRunner(settings(folder("llama"), rope_scaling=kind, max_model_len=length))
    assert runner.max_model_len == length
    config = json.loads((folder("llama") / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": kind, "factor": 2.0}
    model = AutoModelForCausalLM.from_pretrained(folder("llama"), config=LlamaConfig(**config)).eval()
    ids = prompt(length - 1)
    one = request(ids, max_new_tokens=1, ignore_eos=True, prompt_logprobs=0, logprobs=0)
    [told] = run(core_of(runner), [one]).values()
    with torch.inference_mode():
        model.model.rotary_emb(torch.zeros(1), torch.tensor([[length - 1]]))
        if kind == "dynamic":
            model.model.rotary_emb.rope_type = "default"
        truth = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    assert told.tokens[0] == truth[-1].argmax().item()
    for token, row in zip(told.first.prompt_logprobs[1:], truth[:-1], strict=True):
        assert abs(token.logprob - row[token.token_id].item()) < 1e-3


@pytest.mark.parametrize(
    ("kind", "length", "factor"),
    [
        ("linear", 2 * POSITIONS, 3.0 * 2),  # from the stretched positions onwards
        ("linear", POSITIONS // 2, 3.0),  # never less than the model was trained with
        ("dynamic", 2 * POSITIONS, 3.0),  # which covers the length already
        ("dynamic", 4 * POSITIONS, 4.0),
    ],
)
def test_a_scaling_of_the_same_kind_starts_from_the_models_own(kind: str, length: int, factor: float) -> None:
    config = LlamaConfig(**SIZES, rope_parameters={"rope_type": kind, "rope_theta": 500.0, "factor": 3.0})
    rope.scale(config, kind, length)
    assert config.rope_parameters == {"rope_type": kind, "rope_theta": 500.0, "factor": factor}


def longrope() -> PreTrainedConfig:
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]}
    return Phi3Config(
        **SIZES,
        original_max_position_embeddings=POSITIONS // 4,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": POSITIONS // 4,
            **factors,
        },
    )


def dynamic() -> PreTrainedConfig:
    return LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0})


@pytest.mark.parametrize("config", [longrope, dynamic])
def test_a_long_neighbour_changes_nobodys_positions(config: Callable[[], Any], tmp_path: Path) -> None:
    save(config(), tmp_path)
    runner = ModelRunner(settings(tmp_path))
    short = request(prompt(10), "short", logprobs=5, ignore_eos=True)
    long = request(prompt(POSITIONS - 20), "long", ignore_eos=True)
    alone = run(core_of(runner), [short])["short"].outputs[0]
    beside = run(core_of(runner), [long, short])["short"].outputs[0]
    after = run(core_of(runner), [short])["short"].outputs[0]
    for other in (beside, after):
        assert other.token_ids == alone.token_ids
        assert [t.logprob for t in other.logprobs] == pytest.approx([t.logprob for t in alone.logprobs], abs=1e-4)
