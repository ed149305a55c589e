"""Supervised training: what TRL alone would have learned, in checkpoints that others can read."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from engines.adapters.folder import read_adapter
from engines.errors import InvalidRequest, TuneserveError
from engines.pt.config import PtConfig
from engines.pt.runner import ModelRunner
from tests.training.jobs import evaluations, losses, make_job, make_model
from training.data import build
from training.folder import Checkpoint, JobFolder, Message, Result, Started
from training.params.export import MergeParams
from training.params.sft import SftParams
from training.pipelines import merge
from training.pipelines import train as pipeline
from training.refusals.supported import refusals
from training.report import Diverged, Report
from training.trainers.supervised import SupervisedTrainer

QUICK: dict[str, Any] = {
    "torch_dtype": "float32", "per_device_train_batch_size": 2, "max_steps": 6, "logging_steps": 1, "save_steps": 3,
    "learning_rate": 1e-2, "report_to": "none", "split_dataset_ratio": 0.0, "lora_dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs are."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def train(jobs: Path, tiny: Path, lines: Path) -> Callable[..., tuple[JobFolder, Result]]:
    """Run a job in this process, once for all tests that give the same parameters; its folder and result."""
    made: dict[str, tuple[JobFolder, Result]] = {}

    def run(**params: Any) -> tuple[JobFolder, Result]:
        given = {"model": str(tiny), "dataset": str(lines), **QUICK, **params}
        key = json.dumps(given, sort_keys=True)
        if key not in made:
            job = make_job(jobs / str(len([*jobs.iterdir()])), "sft", **given)
            asked: Any = job.read_task().completed().params
            made[key] = job, pipeline.run(asked, Report(job))
        return made[key]

    return run


def weights(job: JobFolder, step: int) -> dict[str, torch.Tensor]:
    (file,) = (job.path / f"checkpoint-{step}").glob("*model.safetensors")
    return load_file(file)


def trl_losses(
    tiny: Path,
    lines: Path,
    folder: Path,
    *,
    router_aux_loss_coef: float | None = None,
    accumulated: int = 1,
    **more: Any,
) -> list[float]:
    """What TRL's own trainer says, of the same tokens."""
    set_seed(42)
    params = SftParams.model_validate({"model": str(tiny), "dataset": str(lines), **QUICK})
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    arguments = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=2, max_steps=6, logging_steps=1, learning_rate=1e-2,
        weight_decay=0.1, lr_scheduler_type="cosine", max_length=None, save_strategy="no", use_cpu=True, bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True}, report_to=[], seed=42, data_seed=42,
        router_aux_loss_coef=router_aux_loss_coef, gradient_accumulation_steps=accumulated,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    data = build(params, tokenizer, learns="answers").train
    trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer, **more)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_loss_of_lora_is_trls_own(
    train: Callable[..., tuple[JobFolder, Result]], tiny: Path, lines: Path, tmp_path: Path
) -> None:
    job, _ = train(lora_rank=4, lora_alpha=8)

    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = trl_losses(tiny, lines, tmp_path / "trl", peft_config=lora)
    assert list(losses(job).values()) == pytest.approx(theirs, abs=1e-4)
    assert theirs[-1] < theirs[0]


def test_the_loss_of_full_training_is_trls_own(
    train: Callable[..., tuple[JobFolder, Result]], tiny: Path, lines: Path, tmp_path: Path
) -> None:
    job, _ = train(train_type="full")

    assert list(losses(job).values()) == pytest.approx(trl_losses(tiny, lines, tmp_path / "trl"), abs=1e-4)


@pytest.mark.parametrize("coef", [None, 0.0, 0.5])
@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_the_loss_of_a_mixture_of_experts_is_trls_own(
    train: Callable[..., tuple[JobFolder, Result]], lines: Path, tmp_path: Path, coef: float | None, train_type: str
) -> None:
    model = make_model(tmp_path / "model", "mixtral")
    targets = ["q_proj", "v_proj"]
    shape: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8, "target_modules": targets} if train_type == "lora" else {}
    job, _ = train(
        model=str(model), train_type=train_type, router_aux_loss_coef=coef, gradient_accumulation_steps=2, **shape
    )

    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    more = {"peft_config": lora} if shape else {}
    theirs = trl_losses(model, lines, tmp_path / "trl", router_aux_loss_coef=coef, accumulated=2, **more)
    assert list(losses(job).values()) == pytest.approx(theirs, abs=1e-4)


def test_a_job_says_what_happens(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    job, result = train()

    events = [event for event, _ in job.read_events()]
    assert Started(time=0, total_steps=6, rows=12) in [e.model_copy(update={"time": 0}) for e in events]
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [3, 6]
    assert job.checkpoints() == [3, 6]
    assert any(isinstance(event, Message) for event in events)
    assert (result.status, result.artifact, result.kind, result.final_step) == (
        "succeeded", "checkpoint-6", "adapter", 6,
    )  # fmt: skip
    assert result.trained_tokens and result.metrics["train_runtime"] > 0


def test_an_adapter_is_one_that_peft_and_our_engine_load(
    train: Callable[..., tuple[JobFolder, Result]], tiny: Path
) -> None:
    job, result = train()
    folder = job.path / result.artifact

    support = ModelRunner(PtConfig(model=str(tiny), dtype="float32", max_loras=1)).lora.support
    assert read_adapter(folder, support).rank == 8
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), folder)
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_full_training_writes_a_model(train: Callable[..., tuple[JobFolder, Result]], tiny: Path) -> None:
    job, result = train(train_type="full")

    model = AutoModelForCausalLM.from_pretrained(job.path / result.artifact)
    before = AutoModelForCausalLM.from_pretrained(tiny)
    assert result.kind == "model"
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)


def test_what_is_frozen_stays_as_it_is(train: Callable[..., tuple[JobFolder, Result]], tiny: Path) -> None:
    job, result = train(train_type="full", freeze_parameters_ratio=1.0, trainable_parameters=["model.layers.1."])

    before = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    after = AutoModelForCausalLM.from_pretrained(job.path / result.artifact).state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all(name.startswith("model.layers.1.") for name in changed)


def test_resumed_training_ends_as_one_that_was_never_stopped(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    whole, _ = train(lora_dropout=0.1)
    resumed, result = train(lora_dropout=0.1, resume_from_checkpoint=str(whole.path / "checkpoint-3"))

    assert result.final_step == 6
    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}
    for name, tensor in weights(whole, 6).items():
        assert torch.equal(tensor, weights(resumed, 6)[name])


def test_resumed_full_training_ends_as_one_that_was_never_stopped(
    train: Callable[..., tuple[JobFolder, Result]],
) -> None:
    whole, _ = train(train_type="full")
    resumed, _ = train(train_type="full", resume_from_checkpoint=str(whole.path / "checkpoint-3"))

    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}
    for name, tensor in weights(whole, 6).items():
        assert torch.equal(tensor, weights(resumed, 6)[name]), (tensor - weights(resumed, 6)[name]).abs().max()


@pytest.mark.parametrize(
    "first",
    [{"lora_rank": 3, "lora_alpha": 24, "use_rslora": True}, {"init_weights": "pissa", "lora_rank": 2}],
    ids=["lora", "pissa"],
)
def test_resumed_training_that_began_with_an_adapter_ends_as_one_that_was_never_stopped(
    train: Callable[..., tuple[JobFolder, Result]], first: dict[str, Any]
) -> None:
    taught, result = train(**first, lora_dropout=0.1)
    adapter = str(taught.path / result.artifact)
    whole, _ = train(adapters=adapter)
    resumed, _ = train(adapters=adapter, resume_from_checkpoint=str(whole.path / "checkpoint-3"), load_args=False)

    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}
    for name, tensor in weights(whole, 6).items():
        assert torch.equal(tensor, weights(resumed, 6)[name])
    config = json.loads((resumed.path / "checkpoint-6" / "adapter_config.json").read_text())
    assert config == json.loads((whole.path / "checkpoint-6" / "adapter_config.json").read_text())


def test_a_checkpoint_alone_says_with_which_adapter_it_began(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    taught, result = train(lora_rank=3, lora_alpha=24)
    whole, _ = train(adapters=str(taught.path / result.artifact))
    resumed, _ = train(resume_from_checkpoint=str(whole.path / "checkpoint-3"))

    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}


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


def test_what_goes_on_with_other_rows_says_so(
    train: Callable[..., tuple[JobFolder, Result]], lines: Path, tmp_path: Path
) -> None:
    whole, _ = train()
    checkpoint = str(whole.path / "checkpoint-3")
    rows = lines.read_text().splitlines(keepends=True)
    copied, other, fewer = (tmp_path / f"{name}.jsonl" for name in ("copied", "other", "fewer"))
    copied.write_text("".join(rows))
    other.write_text("".join(reversed(rows)))
    fewer.write_text("".join(rows[:5]))

    def told(data: Path) -> list[str]:
        job, _ = train(resume_from_checkpoint=checkpoint, dataset=str(data))
        said = [event.message for event, _ in job.read_events() if isinstance(event, Message)]
        return [text for text in said if "other rows" in text]

    assert told(copied) == []
    (said,) = told(other)
    assert said.startswith("checkpoint-3 has learned from other rows (12 samples, and 12 now): the training goes on at")
    assert "(12 samples, and 5 now)" in told(fewer)[0]


@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_what_takes_the_weights_only_goes_on_after_an_interruption(
    train: Callable[..., tuple[JobFolder, Result]], train_type: str
) -> None:
    shape = {"lora_rank": 3, "lora_alpha": 24} if train_type == "lora" else {}
    taught, _ = train(train_type=train_type, **shape)
    begun = {"resume_from_checkpoint": str(taught.path / "checkpoint-6"), "resume_only_model": True}
    whole, _ = train(train_type=train_type, load_args=False, **begun)
    again = whole.read_task().going_on_from(whole.path / "checkpoint-3").training
    resumed, _ = train(**again.model_dump(exclude_unset=True))

    assert losses(whole)[1] < losses(taught)[1]
    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}


@pytest.mark.parametrize(
    ("given", "param", "reason"),
    [
        ({"load_args": False}, "adapters", "the adapter that is to be named here"),
        ({"train_type": "full"}, "train_type", "was trained with train_type lora, not full"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_make_another_training_of_one_that_began_with_an_adapter_is_refused(
    train: Callable[..., tuple[JobFolder, Result]], tmp_path: Path, given: dict[str, Any], param: str, reason: str
) -> None:
    taught, result = train()
    begun, _ = train(adapters=str(taught.path / result.artifact))

    asked = make_job(tmp_path / "next", "sft", resume_from_checkpoint=str(begun.path / "checkpoint-3"), lora_rank=5)
    assert ("lora_rank", "training goes on with the adapter in adapters, which has its own: leave it out") in refusals(
        asked.read_task().completed()
    )
    with pytest.raises(InvalidRequest, match=reason) as refused:
        train(resume_from_checkpoint=str(begun.path / "checkpoint-3"), **given)
    assert refused.value.param == param


def test_an_adapter_of_another_shape_is_not_resumed(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    """PEFT would load the weights, and scale them otherwise."""
    first, result = train(lora_alpha=8)
    other, _ = train(lora_alpha=16)
    begun, _ = train(adapters=str(first.path / result.artifact))
    named = {"adapters": str(other.path / result.artifact)}

    with pytest.raises(InvalidRequest, match="lora_alpha 8, and the one that is trained 16") as refused:
        train(resume_from_checkpoint=str(begun.path / "checkpoint-3"), **named)
    assert refused.value.param == "resume_from_checkpoint"
    with pytest.raises(InvalidRequest, match="lora_alpha 8, and the one that is trained 32"):
        train(resume_from_checkpoint=str(first.path / "checkpoint-3"), load_args=False)
    with pytest.raises(InvalidRequest, match="began with a new adapter") as refused:
        train(resume_from_checkpoint=str(first.path / "checkpoint-3"), **named)
    assert refused.value.param == "adapters"
    with pytest.raises(InvalidRequest, match="did not begin with init_weights pissa") as refused:
        train(resume_from_checkpoint=str(first.path / "checkpoint-3"), init_weights="pissa")
    assert refused.value.param == "init_weights"


def test_an_adapter_that_the_training_cannot_begin_with_is_refused(
    train: Callable[..., tuple[JobFolder, Result]], tmp_path: Path
) -> None:
    taught, result = train(init_weights="pissa", lora_rank=2)
    adapter = taught.path / result.artifact
    for given, param, reason in (
        ({"adapters": str(adapter), "train_type": "vera"}, "train_type", "is of type LORA"),
        ({"adapters": str(adapter / "pissa")}, "adapters", "has changed"),
        ({"adapters": str(tmp_path)}, "adapters", "has no adapter_config.json"),
        ({"adapters": str(tmp_path / "gone")}, "adapters", "there is no folder 'gone'"),
        ({"resume_from_checkpoint": str(tmp_path / "gone")}, "resume_from_checkpoint", "there is no folder 'gone'"),
    ):
        with pytest.raises(TuneserveError, match=reason) as refused:
            train(load_args=False, **given)
        assert refused.value.param == param


def test_resuming_at_the_end_gives_the_result_again(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    whole, _ = train()
    _, result = train(resume_from_checkpoint=str(whole.path / "checkpoint-6"))

    assert (result.status, result.artifact) == ("succeeded", "checkpoint-6")


def test_with_resume_only_model_the_steps_begin_anew(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    whole, _ = train()
    again, result = train(resume_from_checkpoint=str(whole.path / "checkpoint-6"), resume_only_model=True)

    assert result.final_step == 6
    assert losses(again)[1] < losses(whole)[1]


def test_a_checkpoint_without_its_optimizer_is_not_resumed(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    whole, _ = train(save_only_model=True)

    with pytest.raises(InvalidRequest, match=r"optimizer\.pt"):
        train(resume_from_checkpoint=str(whole.path / "checkpoint-3"))


def test_in_place_of_the_folder_of_a_training_a_checkpoint_in_it_is_to_be_named(
    train: Callable[..., tuple[JobFolder, Result]],
) -> None:
    whole, _ = train()

    with pytest.raises(InvalidRequest, match="name a checkpoint in it, such as checkpoint-6") as refused:
        train(resume_from_checkpoint=str(whole.path))
    assert refused.value.param == "resume_from_checkpoint"


def test_training_goes_on_with_an_adapter(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    first, result = train()
    second, _ = train(adapters=str(first.path / result.artifact))

    assert losses(second)[1] < losses(first)[1]


def test_what_a_checkpoint_was_trained_with_is_read_back(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    first, result = train(lora_rank=2, learning_rate=5e-3)
    args = json.loads((first.path / result.artifact / "args.json").read_text())
    second, again = train(adapters=str(first.path / result.artifact), load_args=True)

    assert (args["lora_rank"], args["train_type"]) == (2, "lora")
    assert "hub_token" not in args
    assert json.loads((second.path / again.artifact / "args.json").read_text())["lora_rank"] == 2


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


def test_with_lora_plus_the_second_matrix_learns_faster(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    plain, _ = train(max_steps=1)
    plus, _ = train(max_steps=1, lorap_lr_ratio=16)

    moved = {name: (plain_w, weights(plus, 1)[name]) for name, plain_w in weights(plain, 1).items()}
    assert all(b.abs().sum() > 4 * a.abs().sum() for name, (a, b) in moved.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "params",
    [{"weight_decay": 0.9}, {"warmup_ratio": 0.9}, {"lr_scheduler_type": "constant"}, {"max_grad_norm": 1e-4},
     {"neftune_noise_alpha": 15}, {"gradient_accumulation_steps": 2}, {"seed": 1}, {"data_seed": 1},
     {"learning_rate": 1e-3}, {"per_device_train_batch_size": 3}],
    ids=lambda params: next(iter(params)),
)  # fmt: skip
def test_a_parameter_of_the_trainer_changes_what_is_learned(
    train: Callable[..., tuple[JobFolder, Result]], params: dict[str, Any]
) -> None:
    before, _ = train(max_steps=2)
    after, _ = train(**{"max_steps": 2, **params})

    first, second = weights(before, 2), weights(after, 2)
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("params", [{"gradient_checkpointing": False}, {"dataloader_num_workers": 1}], ids=str)
def test_how_it_is_computed_changes_nothing(
    train: Callable[..., tuple[JobFolder, Result]], params: dict[str, Any]
) -> None:
    before, _ = train(max_steps=2)
    after, _ = train(**params, max_steps=2)

    assert losses(after) == pytest.approx(losses(before), abs=1e-5)


def test_the_validation_data_is_evaluated(train: Callable[..., tuple[JobFolder, Result]], lines: Path) -> None:
    job, _ = train(val_dataset=str(lines), eval_steps=2, acc_strategy="seq")

    found = evaluations(job)
    assert list(found) == [2, 4, 6]
    assert found[6]["loss"] < found[2]["loss"]
    assert 0 <= found[6]["sequence_accuracy"] <= 1


def test_only_so_many_checkpoints_are_kept(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    job, _ = train(save_steps=1, save_total_limit=2)

    assert job.checkpoints() == [5, 6]


def test_the_best_checkpoint_is_kept(train: Callable[..., tuple[JobFolder, Result]], lines: Path) -> None:
    # Of a training that goes well on any machine the first loss is the highest: here it counts as the best.
    judged = {"metric_for_best_model": "loss", "greater_is_better": True}
    job, _ = train(val_dataset=str(lines), save_steps=1, save_total_limit=2, **judged)

    scores = {step: metrics["loss"] for step, metrics in evaluations(job).items()}
    best = max(scores, key=scores.__getitem__)
    assert best < 5
    assert job.checkpoints() == [best, 6]


def test_what_is_learned_is_kept_also_where_no_checkpoints_are_asked_for(
    train: Callable[..., tuple[JobFolder, Result]],
) -> None:
    job, result = train(save_strategy="no")

    assert job.checkpoints() == [6]
    assert result.artifact == "checkpoint-6"


def test_metrics_go_to_tensorboard_unless_told_otherwise(
    train: Callable[..., tuple[JobFolder, Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    job, _ = train(report_to="tensorboard", max_steps=1)

    assert list(job.path.glob("runs/**/events.out.tfevents.*"))


def test_a_loss_that_is_no_number_ends_the_training(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    with pytest.raises(Diverged, match="learning_rate"):
        train(train_type="full", learning_rate=1e30, max_grad_norm=0, lr_scheduler_type="constant", weight_decay=0)


@pytest.mark.parametrize("lost", ["loss", "gradients"])
def test_what_is_no_number_between_two_logs_is_in_no_checkpoint(
    train: Callable[..., tuple[JobFolder, Result]], jobs: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    computed = SupervisedTrainer.training_step

    def poisoned(trainer: Any, model: Any, *given: Any) -> torch.Tensor:
        loss = computed(trainer, model, *given)
        if trainer.state.global_step == 6 and lost == "loss":
            return loss + float("nan")
        if trainer.state.global_step == 6:
            next(weight for weight in model.parameters() if weight.requires_grad).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(SupervisedTrainer, "training_step", poisoned)
    before = {*jobs.iterdir()}
    with pytest.raises(Diverged, match=r"step 10\b.*learning_rate"):
        train(max_steps=20, logging_steps=50, save_steps=5)

    (job,) = (JobFolder(folder) for folder in {*jobs.iterdir()} - before)
    assert job.checkpoints() == [5]
    assert all(tensor.isfinite().all() for tensor in weights(job, 5).values())
    assert [event.step for event, _ in job.read_events() if isinstance(event, Checkpoint)] == [5]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"target_modules": ["nothing_proj"]}, "target_modules"),
        ({"train_type": "full", "freeze_parameters_ratio": 1.0}, "freeze_parameters_ratio"),
        ({"train_type": "full", "freeze_parameters": ["no.such"]}, "freeze_parameters"),
        ({"torch_dtype": "float16"}, "torch_dtype"),
        ({"model": "/no/such/folder"}, "model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_trained_is_refused_by_name(
    train: Callable[..., tuple[JobFolder, Result]], params: dict[str, Any], param: str
) -> None:
    with pytest.raises(TuneserveError) as refused:
        train(**params)

    assert refused.value.param == param


def test_what_the_model_writes_is_compared_with_the_validation_data(
    train: Callable[..., tuple[JobFolder, Result]], lines: Path
) -> None:
    job, _ = train(val_dataset=str(lines), predict_with_generate=True, max_new_tokens=8, max_steps=60, save_steps=60)

    (scores,) = evaluations(job).values()
    assert {"loss", "token_accuracy", "rouge-1", "rouge-2", "rouge-l", "bleu-4"} <= set(scores)
    assert scores["rouge-l"] > 50, "it has learned the answers by heart"


def test_packed_validation_data_is_asked_one_sample_at_a_time(
    train: Callable[..., tuple[JobFolder, Result]], lines: Path
) -> None:
    def scores(**params: Any) -> dict[str, float]:
        untaught: dict[str, Any] = {"learning_rate": 1e-30, "max_steps": 1, "max_new_tokens": 8}
        job, _ = train(val_dataset=str(lines), predict_with_generate=True, save_steps=1, **untaught, **params)
        (found,) = evaluations(job).values()
        return {name: found[name] for name in ("rouge-1", "rouge-l", "bleu-4")}

    assert scores(packing=True) == pytest.approx(scores())


def test_half_precision_answers_too(train: Callable[..., tuple[JobFolder, Result]], lines: Path) -> None:
    half: dict[str, Any] = {"torch_dtype": "bfloat16", "bf16": True, "max_steps": 1, "save_steps": 1}
    frozen = {"freeze_parameters_ratio": 0.5}
    job, _ = train(
        val_dataset=str(lines), predict_with_generate=True, max_new_tokens=8, train_type="full", **half, **frozen
    )

    assert "rouge-l" in evaluations(job)[1]


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
