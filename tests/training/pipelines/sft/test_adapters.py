"""Which weights the adapter of a supervised training adapts, and of what kind it is."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engines.errors import InvalidRequest
from tests.training.jobs import losses, make_job, make_model
from tests.training.pipelines.sft.runs import weights
from training.folder import JobFolder, Result
from training.params.export import MergeParams
from training.pipelines import merge
from training.pipelines import train as pipeline
from training.report import Report


def test_an_adapter_beside_experts_goes_on_where_it_was_and_has_no_dropout(
    train: Callable[..., tuple[JobFolder, Result]], lines: Path, tmp_path: Path
) -> None:
    model = str(make_model(tmp_path / "experts", "qwen3-moe"))
    whole, _ = train(model=model)
    resumed, _ = train(model=model, resume_from_checkpoint=str(whole.path / "checkpoint-3"))
    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}
    usual = make_job(tmp_path / "usual", "sft", model=model, dataset=str(lines), max_steps=1, report_to=["none"])
    asked: Any = usual.read_task().params
    assert pipeline.run(asked, Report(usual)).status == "succeeded"
    with pytest.raises(InvalidRequest, match="experts of qwen3_moe are adapted without dropout") as told:
        train(model=model, lora_dropout=0.1)
    assert told.value.param == "lora_dropout"
    with pytest.raises(InvalidRequest, match="experts of qwen3_moe are adapted without DoRA") as refused:
        train(model=model, use_dora=True)
    assert refused.value.param == "use_dora"


def test_of_a_mixture_a_pattern_adapts_the_layers_that_it_fits_and_no_others(
    train: Callable[..., tuple[JobFolder, Result]], tmp_path: Path
) -> None:
    model = str(make_model(tmp_path / "experts", "qwen3-moe"))
    for pattern, layers in {
        r".*layers\.1\.self_attn\.[qv]_proj": {"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"},
        r".*(layers\.0\.self_attn\.q|down)_proj": {
            "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts", "model.layers.1.mlp.experts",
        },
    }.items():  # fmt: skip
        job, _ = train(model=model, target_regex=pattern, max_steps=1, save_steps=1)
        names = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in weights(job, 1)}
        assert names == layers
    with pytest.raises(InvalidRequest, match=r"fits model\.layers\.0\.mlp\.experts\.down_proj, and PEFT") as told:
        train(model=model, target_regex=r".*layers\.0.*_proj")
    assert told.value.param == "target_regex"
    for asked in (["layers.0.mlp.experts.down_proj"], ["q_proj", "1.mlp.gate"]):
        with pytest.raises(InvalidRequest, match="of all experts by that name: leave it out") as told:
            train(model=model, target_modules=asked)
        assert told.value.param == "target_modules"


@pytest.mark.parametrize(
    ("params", "holds"),
    [
        ({"target_modules": ["q_proj"]}, lambda names: all("q_proj" in name for name in names)),
        ({"target_regex": r".*layers\.1\..*up_proj"}, lambda names: all("layers.1.mlp.up_proj" in n for n in names)),
        ({"modules_to_save": ["lm_head"]}, lambda names: any("lm_head" in name for name in names)),
        ({"use_dora": True}, lambda names: any("magnitude" in name for name in names)),
    ],
    ids=["target_modules", "target_regex", "modules_to_save", "use_dora"],
)
def test_the_adapter_is_where_it_was_asked_for(
    train: Callable[..., tuple[JobFolder, Result]], params: dict[str, Any], holds: Callable[[Iterable[str]], bool]
) -> None:
    job, _ = train(**params, max_steps=1)

    assert holds(weights(job, 1))


@pytest.mark.parametrize(
    ("params", "config"),
    [
        ({"use_rslora": True}, {"use_rslora": True}),
        ({"lora_rank": 3, "lora_alpha": 5}, {"r": 3, "lora_alpha": 5}),
        ({"init_weights": "gaussian"}, {"init_lora_weights": "gaussian"}),
        ({"lora_dropout": 0.2}, {"lora_dropout": 0.2, "bias": "none"}),
    ],
    ids=["rslora", "rank and alpha", "gaussian", "dropout"],
)
def test_the_adapter_is_of_the_kind_asked_for(
    train: Callable[..., tuple[JobFolder, Result]], params: dict[str, Any], config: dict[str, Any]
) -> None:
    job, _ = train(**params, max_steps=1)

    written = json.loads((job.path / "checkpoint-1" / "adapter_config.json").read_text())
    assert config.items() <= written.items()


def test_the_biases_are_trained_beside_the_adapter(
    train: Callable[..., tuple[JobFolder, Result]], biased: Path, tmp_path: Path
) -> None:
    job, result = train(model=str(biased), lora_bias="all", max_steps=1)

    checkpoint, before = job.path / result.artifact, load_file(biased / "model.safetensors")
    moved = {name: tensor for name, tensor in weights(job, 1).items() if name.endswith("bias")}
    assert len(moved) == sum(name.endswith("bias") for name in before) > 0
    assert not any(torch.equal(tensor, before[_in_model(name)]) for name, tensor in moved.items())
    merging = MergeParams(model=str(biased), adapters=[str(checkpoint)])
    merged = load_file(tmp_path / merge.run(merging, Report(JobFolder(tmp_path))).artifact / "model.safetensors")
    assert all(torch.equal(tensor, merged[_in_model(name)]) for name, tensor in moved.items())


def _in_model(name: str) -> str:
    """What the base model calls a weight of an adapter's file."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


@pytest.mark.parametrize("train_type", ["lora", "longlora"])
def test_biases_of_a_model_that_has_none_are_refused_before_data_is_read(
    train: Callable[..., tuple[JobFolder, Result]], train_type: str
) -> None:
    with pytest.raises(InvalidRequest, match="llama has no biases that could be trained") as told:
        train(dataset="missing.jsonl", lora_bias="all", train_type=train_type)
    assert told.value.param == "lora_bias"


def test_lora_dtype_is_the_type_of_the_adapter(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    job, _ = train(lora_dtype="bfloat16", max_steps=1)

    assert {tensor.dtype for tensor in weights(job, 1).values()} == {torch.bfloat16}


@pytest.mark.parametrize("init_weights", ["pissa", "pissa_niter_4"])
def test_pissa_is_written_as_a_plain_adapter_of_the_model_as_it_was(
    train: Callable[..., tuple[JobFolder, Result]], tiny: Path, init_weights: str
) -> None:
    job, result = train(init_weights=init_weights, lora_rank=2, learning_rate=1e-3, weight_decay=0)
    folder = job.path / result.artifact
    config = json.loads((folder / "adapter_config.json").read_text())
    before = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model = PeftModel.from_pretrained(before, folder)

    assert (config["r"], config["init_lora_weights"]) == (4, True)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        learned = model(ids).logits
        with model.disable_adapter():
            moved = (learned - model(ids).logits).abs().max()
    inner = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), folder / "pissa")
    assert moved > 1e-2
    if init_weights == "pissa":  # which PEFT computes alike each time
        assert torch.allclose(learned, inner(ids).logits, atol=1e-3)


def test_resumed_pissa_takes_out_what_the_checkpoint_had_whatever_the_seed(
    train: Callable[..., tuple[JobFolder, Result]],
) -> None:
    start = {"init_weights": "pissa_niter_4", "lora_rank": 2}
    whole, _ = train(**start)
    resumed, _ = train(**start, resume_from_checkpoint=str(whole.path / "checkpoint-3"), seed=43)

    assert list(losses(resumed).values()) == pytest.approx(list(losses(whole).values())[3:], abs=1e-4)
    for name, tensor in weights(whole, 6).items():
        assert torch.allclose(tensor, weights(resumed, 6)[name], atol=1e-4)
