"""Weights learn in float32, whatever the type of the model that they belong to; what is saved keeps that type."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedConfig

from engines.errors import TuneserveError
from tests.engines.pt.tiny import CONFIGS
from tests.training.jobs import losses, make_job
from training.folder import JobFolder, Message, Step
from training.losses import log_probs
from training.params.sft import SftParams
from training.params.task import TASK
from training.pipelines import train as pipeline
from training.refusals.supported import refusals
from training.report import Report
from training.trainers.weights import precision
from training.trainers.weights.precision import precision_of

SETTINGS: dict[str, Any] = {
    "train_type": "full", "torch_dtype": "bfloat16", "per_device_train_batch_size": 4, "max_steps": 4,
    "logging_steps": 1, "save_steps": 2, "learning_rate": 1e-3, "report_to": "none", "split_dataset_ratio": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def half(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as most are published: in bfloat16."""
    return in_bfloat16(AutoModelForCausalLM.from_pretrained(tiny), tiny, tmp_path_factory.mktemp("half"))


def in_bfloat16(model: Any, like: Path, folder: Path) -> Path:
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in like.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_bytes((like / "chat_template.jinja").read_bytes())
    return folder


@pytest.fixture
def train(tmp_path: Path, half: Path, lines: Path) -> Callable[..., JobFolder]:
    """Run a job in this process; its folder."""

    def run(task: str = "sft", **params: Any) -> JobFolder:
        given = {"model": str(half), "dataset": str(lines), **SETTINGS, **params}
        job = make_job(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", task, **given)
        asked: Any = job.read_task().params
        assert pipeline.run(asked, Report(job)).status == "succeeded"
        return job

    return run


def dtypes(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for file in folder.glob("*.safetensors") for tensor in load_file(file).values()}


def test_at_a_small_rate_pure_bfloat16_stands_still_and_float32_learns(train: Callable[..., JobFolder]) -> None:
    slow: dict[str, Any] = {
        "learning_rate": 1e-5, "lr_scheduler_type": "constant", "weight_decay": 0, "max_steps": 60,
        "per_device_train_batch_size": 12, "save_steps": 60,
    }  # fmt: skip
    exact = losses(train(**slow, torch_dtype="float32"))
    ours = losses(train(**slow))
    pure = losses(train(**slow, bf16=False))

    learned = exact[1] - exact[60]
    assert ours[1] - ours[60] > learned / 2
    assert abs(pure[1] - pure[60]) < learned / 50


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_logits_are_judged_as_they_were_computed(
    train: Callable[..., JobFolder], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    judged = log_probs._judged
    seen: set[torch.dtype] = set()

    def judge(logits: torch.Tensor, *given: Any, **named: Any) -> Any:
        seen.add(logits.dtype)
        return judged(logits, *given, **named)

    monkeypatch.setattr(log_probs, "_judged", judge)
    train(torch_dtype=dtype, max_steps=1)

    assert seen == {getattr(torch, dtype)}


@pytest.mark.parametrize("train_type", ["full", "lora"])
def test_to_make_float32_of_all_logits_first_would_change_no_bit(
    train: Callable[..., JobFolder], monkeypatch: pytest.MonkeyPatch, train_type: str
) -> None:
    ours = train(train_type=train_type)
    monkeypatch.setattr("training.trainers.job.job.return_as_computed", lambda model: None)
    accelerates = train(train_type=train_type)

    assert losses(ours) == losses(accelerates)
    one, two = (load_file(next((job.path / "checkpoint-4").glob("*.safetensors"))) for job in (ours, accelerates))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_pure_bfloat16_says_what_it_costs(train: Callable[..., JobFolder]) -> None:
    def told(**params: Any) -> list[str]:
        return [event.message for event, _ in train(**params).read_events() if isinstance(event, Message)]

    assert any("an update that is less than about 1/256 of its weight is lost" in text for text in told(bf16=False))
    assert not any("is lost" in text for text in told())


def test_a_checkpoint_has_the_type_of_the_model(train: Callable[..., JobFolder], half: Path) -> None:
    checkpoint = train().path / "checkpoint-4"

    assert dtypes(checkpoint) == {torch.bfloat16}
    assert json.loads((checkpoint / "config.json").read_text())["dtype"] == "bfloat16"
    assert dtypes(checkpoint / "float32") == {torch.float32}
    size = (checkpoint / "model.safetensors").stat().st_size
    assert size == pytest.approx((half / "model.safetensors").stat().st_size, rel=0.01)


def test_whatever_the_processor_computes_in_a_checkpoint_has_the_type_of_the_model(
    train: Callable[..., JobFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.checkpoint.loading._cpu_computes", lambda dtype: False)

    assert dtypes(train(torch_dtype=None).path / "checkpoint-4") == {torch.bfloat16}


def test_a_checkpoint_has_the_type_that_was_asked_for(train: Callable[..., JobFolder]) -> None:
    checkpoint = train(torch_dtype="float32").path / "checkpoint-4"

    assert dtypes(checkpoint) == {torch.float32}
    assert not (checkpoint / "float32").exists()


def test_nothing_is_kept_to_go_on_from_where_weights_alone_are_saved(train: Callable[..., JobFolder]) -> None:
    checkpoint = train(save_only_model=True).path / "checkpoint-4"

    assert dtypes(checkpoint) == {torch.bfloat16}
    assert not (checkpoint / "float32").exists()


@pytest.mark.parametrize("name", ["llama", "tied", "mixtral", "qwen3-moe"])
def test_resumed_training_ends_with_the_bits_of_one_that_was_never_stopped(
    train: Callable[..., JobFolder], tiny: Path, tmp_path: Path, name: str
) -> None:
    config = CONFIGS["llama" if name == "tied" else name]()
    config.tie_word_embeddings = name == "tied"
    torch.manual_seed(0)
    model = str(in_bfloat16(AutoModelForCausalLM.from_config(config), tiny, tmp_path / "model"))
    whole = train(model=model)
    resumed = train(model=model, resume_from_checkpoint=str(whole.path / "checkpoint-2"))

    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 2}
    for inner in ("", "float32"):
        one, two = (load_file(job.path / "checkpoint-4" / inner / "model.safetensors") for job in (whole, resumed))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert ("lm_head.weight" in load_file(whole.path / "checkpoint-4" / "model.safetensors")) == (name != "tied")


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_a_model_in_float32_resumes_too(train: Callable[..., JobFolder], tiny: Path, tmp_path: Path, name: str) -> None:
    model = str(in_bfloat16(AutoModelForCausalLM.from_config(CONFIGS[name]()), tiny, tmp_path / "model"))
    whole = train(model=model, torch_dtype="float32")
    resumed = train(model=model, torch_dtype="float32", resume_from_checkpoint=str(whole.path / "checkpoint-2"))

    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 2}


def test_weights_that_stay_as_they_are_are_held_as_they_were_loaded(
    train: Callable[..., JobFolder], half: Path
) -> None:
    job = train(freeze_parameters_ratio=1.0, trainable_parameters=["model.layers.1."])

    before, after = load_file(half / "model.safetensors"), load_file(job.path / "checkpoint-4" / "model.safetensors")
    kept = load_file(job.path / "checkpoint-4" / "float32" / "model.safetensors")
    assert {name for name in after if not torch.equal(after[name], before[name])} <= {
        name for name in after if name.startswith("model.layers.1.")
    }
    assert {name for name, tensor in kept.items() if tensor.dtype == torch.float32} == {
        name for name in kept if name.startswith("model.layers.1.")
    }


def test_an_adapter_and_what_is_trained_beside_it_learn_in_float32(train: Callable[..., JobFolder]) -> None:
    lora = {"train_type": "lora", "modules_to_save": ["lm_head"]}

    assert dtypes(train(**lora).path / "checkpoint-4") == {torch.float32}
    assert dtypes(train(**lora, lora_dtype="bfloat16").path / "checkpoint-4") == {torch.bfloat16}


def test_before_the_first_step_a_preference_model_says_what_its_reference_says(
    train: Callable[..., JobFolder], tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    row = {"query": "number one", "response": "the red", "rejected_response": "the blue value"}
    pairs.write_text(json.dumps(row) + "\n" + json.dumps(row | {"query": "two"}) + "\n")
    job = train("rlhf", rlhf_type="dpo", rpo_alpha=0, dataset=str(pairs))

    first = next(event for event, _ in job.read_events() if isinstance(event, Step))
    assert first.metrics["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert dtypes(job.path / "checkpoint-4") == {torch.bfloat16}
    assert dtypes(job.path / "checkpoint-4" / "float32") == {torch.float32}


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"bf16": True, "fp16": True}, "fp16"),
        ({"bf16": True, "torch_dtype": "float16"}, "bf16"),
        ({"fp16": True, "torch_dtype": "bfloat16"}, "fp16"),
        ({"fp16": False, "torch_dtype": "float16"}, "fp16"),
        ({"lora_dtype": "float16"}, "lora_dtype"),
    ],
    ids=str,
)
def test_types_that_do_not_go_together_are_refused_before_anything_is_loaded(params: dict[str, Any], name: str) -> None:
    assert name in dict(refusals(TASK.validate_python({"task": "sft", "params": params})))


@pytest.mark.parametrize(
    ("stored", "params", "base", "learning", "autocast"),
    [
        ("bfloat16", {}, "bfloat16", "float32", "bfloat16"),
        ("bfloat16", {"bf16": False}, "bfloat16", "bfloat16", None),
        ("bfloat16", {"fp16": True}, "float16", "float32", "float16"),
        ("float16", {}, "float16", "float32", "float16"),
        ("float16", {"bf16": True}, "bfloat16", "float32", "bfloat16"),
        ("float32", {}, "float32", "float32", None),
        ("float32", {"bf16": True}, "float32", "float32", "bfloat16"),
        ("bfloat16", {"torch_dtype": "float32"}, "float32", "float32", None),
        ("float32", {"torch_dtype": "float16"}, "float16", "float32", "float16"),
    ],
    ids=str,
)
def test_on_a_gpu_weights_learn_in_float32_unless_pure_bfloat16_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, stored: str, params: dict[str, Any], base: str, learning: str, autocast: str | None
) -> None:
    monkeypatch.setattr(precision, "accelerated", lambda: True)
    found = precision_of(SftParams(**params), PreTrainedConfig(dtype=stored))

    assert (found.base, found.learning) == (getattr(torch, base), getattr(torch, learning))
    assert found.autocast == (autocast and getattr(torch, autocast))
    assert found.saved == getattr(torch, params.get("torch_dtype", stored))


def test_a_float16_model_is_not_trained_in_float16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "accelerated", lambda: True)
    with pytest.raises(TuneserveError, match="lose their gradients"):
        precision_of(SftParams(fp16=False), PreTrainedConfig(dtype="float16"))


def test_a_processor_does_not_train_in_float16(train: Callable[..., JobFolder]) -> None:
    with pytest.raises(TuneserveError, match="CPU") as refused:
        train(fp16=True, torch_dtype=None)
    assert refused.value.param == "fp16"
