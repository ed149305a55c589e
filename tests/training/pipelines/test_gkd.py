"""Distillation: a model comes to say what its teacher says, on answers of the data, of the teacher, and its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from engines.errors import InvalidRequest, UnsupportedModel
from tests.engines.pt.tiny import CONFIGS, byte_level_tokenizer, save
from tests.training.jobs import BRIEF, steps, trained, weights
from training.folder import Evaluation, JobFolder
from training.params.rlhf import RlhfParams
from training.params.task import RlhfTask
from training.refusals.supported import refusals

SETTINGS = BRIEF | {
    "rlhf_type": "gkd", "gradient_accumulation_steps": 2, "response_length": 12, "temperature": 1.0,
}  # fmt: skip
OF_LORA = {"lora_dropout": 0.0}
TO_THE_DATA = {"lmbda": 0, "response_length": 512, "temperature": 0.7}
"""With what is said of answers that are drawn at its default."""
ON_POLICY = {"lmbda": 1}
BY_THE_TEACHER = {"lmbda": 0, "seq_kd": True}


@pytest.fixture(scope="session")
def teacher(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(CONFIGS["qwen3"](), tmp_path_factory.mktemp("teacher"), seed=3)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts alone."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"number {i}"}]} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def train(tiny: Path, teacher: Path, lines: Path, tmp_path: Path) -> Callable[..., JobFolder]:
    def run(name: str = "job", **params: Any) -> JobFolder:
        given = SETTINGS | {"model": str(tiny), "teacher_model": str(teacher), "dataset": [str(lines)]} | params
        given = ({} if "train_type" in params else OF_LORA) | given
        return trained(tmp_path / name, "rlhf", **given)

    return run


@pytest.mark.parametrize(
    ("whose", "beta"), [(TO_THE_DATA, 0), (ON_POLICY, 1), (ON_POLICY, 0.5), (BY_THE_TEACHER, 0)], ids=str
)
def test_the_model_comes_nearer_to_its_teacher(
    train: Callable[..., JobFolder], whose: dict[str, Any], beta: float
) -> None:
    told = steps(train(**whose, beta=beta, max_steps=20, save_steps=20))
    first, last = ((told[i]["loss"] + told[i + 1]["loss"]) / 2 for i in (1, 19))
    assert last < 0.9 * first
    assert told[1]["on_policy"] == whose["lmbda"]
    assert 0 <= told[1]["agreement"] <= 1
    assert ("rollouts/share_of_time" in told[1]) == (whose is not TO_THE_DATA)


def test_without_a_rate_nothing_changes(train: Callable[..., JobFolder]) -> None:
    told = weights(train(learning_rate=1e-12, max_steps=2), 2)
    assert all(weight.abs().max() < 1e-9 for name, weight in told.items() if "lora_B" in name)


@pytest.mark.parametrize("params", [{}, {"train_type": "full", "learning_rate": 1e-3}], ids=["lora", "full"])
def test_what_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(
    train: Callable[..., JobFolder], params: dict[str, Any]
) -> None:
    whole = train("whole", **params)
    resumed = train("resumed", resume_from_checkpoint=str(whole.path / "checkpoint-3"), **params)
    told, again = steps(whole), steps(resumed)
    assert {step["on_policy"] for step in told.values()} > {told[1]["on_policy"]}  # both kinds of batches
    for name in ("loss", "grad_norm", "on_policy", "agreement"):
        assert [again[i][name] for i in (4, 5, 6)] == pytest.approx([told[i][name] for i in (4, 5, 6)], abs=1e-5), name
    one, other = weights(whole, 6), weights(resumed, 6)
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-5


def test_prompts_alone_do_where_the_model_answers_them(
    train: Callable[..., JobFolder], tiny: Path, prompts: Path
) -> None:
    folder = train(dataset=str(prompts), val_dataset=f"{prompts}#4", eval_strategy="steps", eval_steps=3, lmbda=1)
    told = [event.metrics for event, _ in folder.read_events() if isinstance(event, Evaluation)]
    assert told[-1]["loss"] < told[0]["loss"]
    assert {"agreement"} < set(told[0])
    base = AutoModelForCausalLM.from_pretrained(tiny)
    assert list(PeftModel.from_pretrained(base, folder.path / "checkpoint-6").peft_config) == ["default"]


@pytest.mark.parametrize("given", [{}, TO_THE_DATA, {"streaming": True}], ids=["some", "all", "streamed"])
def test_rows_that_nobody_answers_are_refused(
    train: Callable[..., JobFolder], prompts: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="lmbda 1") as refused:
        train(dataset=str(prompts), **given)
    assert refused.value.param == "dataset"


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_rows_that_nobody_answers_are_refused(
    train: Callable[..., JobFolder], prompts: Path, streaming: bool
) -> None:
    with pytest.raises(InvalidRequest, match="lmbda 1") as refused:
        train(val_dataset=str(prompts), eval_strategy="steps", eval_steps=3, streaming=streaming, **TO_THE_DATA)
    assert refused.value.param == "val_dataset"


def test_a_teacher_with_other_tokens_is_refused(train: Callable[..., JobFolder], teacher: Path, tmp_path: Path) -> None:
    other = save(CONFIGS["llama"](), tmp_path / "other")
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(InvalidRequest, match="not those of the model") as refused:
        train(teacher_model=str(other))
    assert refused.value.param == "teacher_model"
    with pytest.raises(UnsupportedModel) as unknown:
        train("unknown", teacher_model=str(tmp_path / "nothing"))
    assert unknown.value.param == "teacher_model"
    with pytest.raises(InvalidRequest, match="qwen3") as unlike:
        train("unlike", teacher_model_type="llama")
    assert unlike.value.param == "teacher_model_type"


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"teacher_model": None}, ("teacher_model", "name the model")),
        ({"beta": 1.5}, ("beta", "from 0 to 1")),
        ({"seq_kd": True, "lmbda": 1}, ("seq_kd", "none the teacher's")),
        ({"lmbda": 0, "temperature": 0.3}, ("temperature", "no answer is drawn")),
        ({"lmbda": 0, "response_length": 9}, ("response_length", "no answer is drawn")),
        ({"lmbda": 0, "rollout_device": "cpu"}, ("rollout_device", "no answer is drawn")),
        ({"rpo_alpha": 0.3}, ("rpo_alpha", "only rlhf_type dpo")),
        ({"rlhf_type": "dpo", "lmbda": 0.3}, ("lmbda", "only rlhf_type gkd")),
    ],
)
def test_what_it_does_not_take_is_refused_by_name(params: dict[str, Any], told: tuple[str, str]) -> None:
    given = {"rlhf_type": "gkd", "model": "m", "dataset": "d", "teacher_model": "t"} | params
    assert told[1] in dict(refusals(RlhfTask(params=RlhfParams.model_validate(given))))[told[0]]
