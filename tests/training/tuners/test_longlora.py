"""LongLoRA: groups of tokens in training, all of them elsewhere. The rest is in test_kinds.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from engines.errors import UnsupportedModel
from tests.engines.pt.tiny import CONFIGS
from tests.training.jobs import make_job
from training import tuners
from training.layers.shifted_attention import NAME, attend, register
from training.params.rlhf import RlhfParams
from training.params.sft import SftParams
from training.pipelines import train as pipeline
from training.report import Report
from training.tuners import TUNERS

LEARNING = SimpleNamespace(training=True)


def states(tokens: int, heads: int = 5, fewer: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query = torch.randn(2, heads, tokens, 8, dtype=torch.float64)
    key, value = (torch.randn(2, fewer, tokens, 8, dtype=torch.float64) for _ in range(2))
    return query, key, value


def by_definition(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Attention with a mask over all tokens. `visible`: (batch, tokens)."""
    heads, tokens = query.shape[1:3]
    half = -(-tokens // 8)
    at = torch.arange(tokens)
    masks = []
    for head in range(heads):
        group = (at + (half if head >= heads // 2 else 0)) // (2 * half)
        masks.append((group[:, None] == group) & (at[:, None] >= at))
    mask = torch.stack(masks) & visible[:, None, None] | torch.eye(tokens, dtype=torch.bool)
    key, value = (each.repeat_interleave(heads // key.shape[1], dim=1) for each in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 16, 33])
def test_a_token_sees_its_group_and_for_half_of_the_heads_the_shifted_one(tokens: int) -> None:
    given = states(tokens)
    came, _ = attend(LEARNING, *given, None)
    torch.testing.assert_close(came, by_definition(*given, torch.ones(2, tokens, dtype=torch.bool)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_seen(side: str) -> None:
    given = states(16)
    visible = torch.ones(2, 16, dtype=torch.bool)
    visible[1, slice(5) if side == "left" else slice(11, None)] = False
    at = torch.arange(16)
    mask = (at[:, None] >= at) & visible[:, None, None]
    came, _ = attend(LEARNING, *given, mask)
    torch.testing.assert_close(came[visible], by_definition(*given, visible)[visible])
    assert came.isfinite().all()


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    register()
    made = AutoModelForCausalLM.from_config(CONFIGS["llama"](), dtype=torch.float32)
    made.set_attn_implementation(NAME)
    return made


def test_outside_of_training_attention_is_the_models_own(model: Any) -> None:
    ids, mask = torch.tensor([[3, 17, 5, 60, 9, 22, 7, 8, 30], [0, 0, 5, 60, 9, 22, 7, 8, 30]]), torch.ones(2, 9)
    mask[1, :2] = 0
    model.eval()
    said = model(input_ids=ids, attention_mask=mask).logits
    written = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    learning = model.train()(input_ids=ids, attention_mask=mask).logits
    model.eval().set_attn_implementation("sdpa")
    torch.testing.assert_close(said, model(input_ids=ids, attention_mask=mask).logits, atol=0, rtol=0)
    assert torch.equal(written, model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False))
    assert (learning - said)[0].abs().max() > 1e-2


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_are_computed_again_compute_the_same(model: Any, reentrant: bool) -> None:
    ids, found = torch.tensor([[3, 17, 5, 60, 9, 22, 7, 8, 30]]), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        found.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(*found)


def test_embeddings_and_norms_are_saved_whole_and_training_goes_on_with_them(
    tmp_path: Path, tiny: Path, lines: Path
) -> None:
    given = {
        "model": str(tiny), "dataset": str(lines), "train_type": "longlora", "torch_dtype": "float32", "max_steps": 1,
        "split_dataset_ratio": 0, "report_to": ["none"],
    }  # fmt: skip

    def run(name: str, **params: Any) -> Path:
        job = make_job(tmp_path / name, "sft", **given | params)
        task = job.read_task()
        assert task.training is not None
        return job.path / str(pipeline.run(task.training, Report(job)).artifact)

    first = run("first", lora_rank=4)
    whole = {name for name in load_file(first / "adapter_model.safetensors") if ".lora_" not in name}
    norms = [f"layers.{i}.{part}_layernorm" for i in (0, 1) for part in ("input", "post_attention")]
    assert whole == {f"base_model.model.model.{name}.weight" for name in ("embed_tokens", "norm", *norms)}
    again = run("again", adapters=[str(first)])
    assert (
        load_file(again / "adapter_model.safetensors").keys() == load_file(first / "adapter_model.safetensors").keys()
    )


@pytest.mark.parametrize(
    ("params", "refused"),
    [
        ({"packing": True}, ("packing", "length of a sample")),
        ({"sequence_parallel_size": 2}, ("sequence_parallel_size", "not divided")),
        ({"attn_impl": "flash_attn"}, ("attn_impl", "attention of its own")),
        ({"init_weights": "pissa"}, ("init_weights", "longlora begins with true")),
        ({"vera_rank": 4}, ("vera_rank", "only train_type vera reads it")),
    ],
)
def test_what_it_does_not_take_is_refused(params: dict[str, Any], refused: tuple[str, str]) -> None:
    ((name, reason),) = tuners.refusals(SftParams.model_validate({"train_type": "longlora"} | params))
    assert (name, refused[1] in reason) == (refused[0], True)


@pytest.mark.parametrize("method", ["dpo", "kto", "grpo", "ppo"])
def test_methods_that_compare_or_draw_are_refused(method: str) -> None:
    found = dict(tuners.refusals(RlhfParams(train_type="longlora", rlhf_type=method)))
    assert f"which {method} compares or draws with" in found["train_type"]


@pytest.mark.parametrize("family", ["mistral", "qwen2-window", "gemma2"])
def test_models_with_windows_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModel, match="window"):
        TUNERS["longlora"].check_config(SftParams(train_type="longlora"), CONFIGS[family]())
