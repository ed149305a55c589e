"""PPO: the model comes to answer as its reward model likes it, and a job of it is one like any other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from engines.errors import InvalidRequest, TuneserveError, UnsupportedModel
from tests.training.jobs import BRIEF, steps, trained, weights
from tests.training.ppo.given import save_reward_model
from training.folder import Evaluation, JobFolder, Message
from training.params.rlhf import RlhfParams
from training.params.task import RlhfTask
from training.refusals.supported import refusals

SETTINGS = BRIEF | {
    "rlhf_type": "ppo", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-3,
    "max_steps": 4, "save_steps": 2, "response_length": 8, "temperature": 1.0, "num_ppo_epochs": 2,
    "num_mini_batches": 2,
}  # fmt: skip
OF_LORA = {"lora_dropout": 0.0}
FULL = {"train_type": "full", "learning_rate": 1e-4}


@pytest.fixture(scope="session")
def judge(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tiny, tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"number {i}"}]} for i in range(32)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def train(tiny: Path, judge: Path, prompts: Path, tmp_path: Path) -> Callable[..., JobFolder]:
    def run(name: str = "job", **params: Any) -> JobFolder:
        given = SETTINGS | {"model": str(tiny), "reward_model": str(judge), "dataset": [str(prompts)]} | params
        given = ({} if "train_type" in params else OF_LORA) | given
        return trained(tmp_path / name, "rlhf", **given)

    return run


def test_answers_are_worth_more_after_it(train: Callable[..., JobFolder], tiny: Path, tmp_path: Path) -> None:
    by_the_last_token = save_reward_model(tiny, tmp_path / "judge", sees=False)
    batch = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "max_steps": 20, "save_steps": 20}
    told = steps(
        train(**batch, reward_model=str(by_the_last_token), learning_rate=1e-2, kl_coef=0.0, response_length=2)
    )
    first, last = (sum(told[i]["objective/scores"] for i in three) / 3 for three in ((1, 2, 3), (18, 19, 20)))
    assert last > first + 1
    assert told[1]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert told[20]["objective/kl"] > 1
    assert 0 < told[1]["rollouts/share_of_time"] < 1
    assert {
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "val/ratio",
        "eps",
    } <= set(told[1])


def test_the_reference_holds_the_model(train: Callable[..., JobFolder]) -> None:
    free, held = (
        steps(train(name, kl_coef=weight, learning_rate=1e-2, max_steps=6, save_steps=6))[6]["objective/kl"]
        for name, weight in (("free", 0.0), ("held", 5.0))
    )
    assert abs(held) < abs(free)


def test_without_a_rate_nothing_changes(train: Callable[..., JobFolder]) -> None:
    job = train(learning_rate=1e-12, max_steps=2)
    told = weights(job, 2) | weights(job, 2, "value_model")
    assert all(weight.abs().max() < 1e-9 for name, weight in told.items() if "lora_B" in name)
    assert all(abs(step["objective/kl"]) < 1e-4 for step in steps(job).values())


@pytest.mark.parametrize("kind", [{}, FULL], ids=["lora", "full"])
def test_what_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(
    train: Callable[..., JobFolder], kind: dict[str, Any]
) -> None:
    whole = train("whole", **kind)
    resumed = train("resumed", resume_from_checkpoint=str(whole.path / "checkpoint-2"), **kind)
    told, again = steps(whole), steps(resumed)
    assert [*again] == [3, 4]
    for name in ("loss", "grad_norm", "objective/scores", "objective/kl", "loss/value_avg"):
        assert [again[i][name] for i in (3, 4)] == pytest.approx([told[i][name] for i in (3, 4)], abs=1e-4), name
    for inside in ("", "value_model"):
        one, other = weights(whole, 4, inside), weights(resumed, 4, inside)
        assert one.keys() == other.keys()
        assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-5


@pytest.mark.parametrize("kind", [{}, FULL], ids=["lora", "full"])
def test_the_policy_is_saved_alone(train: Callable[..., JobFolder], tiny: Path, kind: dict[str, Any]) -> None:
    checkpoint = train(max_steps=2, **kind).path / "checkpoint-2"
    if kind:
        assert AutoModelForCausalLM.from_pretrained(checkpoint).num_parameters() > 0
    else:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), checkpoint)
        assert list(model.peft_config) == ["default"]


def test_a_checkpoint_without_its_value_model_is_refused(train: Callable[..., JobFolder]) -> None:
    folder = train(max_steps=2).path / "checkpoint-2"
    (folder / "value_model" / "weights.safetensors").unlink()
    with pytest.raises(InvalidRequest, match="value model") as refused:
        train("resumed", resume_from_checkpoint=str(folder))
    assert refused.value.param == "resume_from_checkpoint"


def test_an_adapter_is_a_reward_model_too(
    train: Callable[..., JobFolder], tiny: Path, judge: Path, tmp_path: Path
) -> None:
    """The head that is judged with is the adapter's: the base model has none."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        adapted.get_base_model().score.modules_to_save["default"].weight.fill_(5.0)
    adapted.save_pretrained(tmp_path / "judge")

    by_adapter = steps(train("adapter", reward_model=str(tiny), reward_adapters=[str(tmp_path / "judge")], max_steps=1))
    by_model = steps(train("model", max_steps=1))
    assert by_adapter[1]["objective/scores"] != pytest.approx(by_model[1]["objective/scores"], abs=0.1)


def test_validation_prompts_are_answered_and_judged(train: Callable[..., JobFolder], prompts: Path) -> None:
    job = train(val_dataset=f"{prompts}#4", eval_strategy="steps", eval_steps=2)
    told = [event for event, _ in job.read_events() if isinstance(event, Evaluation)]
    assert [event.step for event in told] == [2, 4]
    assert told[0].metrics["loss"] == pytest.approx(-told[0].metrics["objective/rlhf_reward"])
    assert {"objective/scores", "objective/kl"} <= set(told[0].metrics)


SHORT = """
def short(completions, **columns):
    return [-len(ids) / 10 if len(ids) > 2 else None for ids in columns["completion_ids"]]
"""
STARS = {
    "type": "text_similarity",
    "name": "stars",
    "input": "{{sample.output_text}}",
    "reference": "{{item.messages}}",
    "evaluation_metric": "fuzzy_match",
}


@pytest.mark.parametrize("kind", [{}, FULL], ids=["lora", "full"])
def test_functions_and_a_grader_judge_without_a_reward_model(
    train: Callable[..., JobFolder], tmp_path: Path, kind: dict[str, Any]
) -> None:
    """The value model then has a new head on the model that training begins with; what goes on from a checkpoint has
    it too."""
    (tmp_path / "short.py").write_text(SHORT)
    judged = {"reward_model": None, "reward_funcs": [f"{tmp_path}/short.py:short"], "grader": STARS, **kind}
    whole = train("whole", **judged, reward_weights=[2.0, 0.5])
    for told in steps(whole).values():
        assert told["rewards/short/mean"] < 0 < told["rewards/stars/mean"]
        assert told["rewards/stars/errors"] == 0
        assert "rewards/reward_model/mean" not in told
    resumed = train(
        "resumed", **judged, reward_weights=[2.0, 0.5], resume_from_checkpoint=str(whole.path / "checkpoint-2")
    )
    for inside in ("", "value_model"):
        one, other = weights(whole, 4, inside), weights(resumed, 4, inside)
        assert one.keys() == other.keys()
        assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-5


def test_answers_are_held_to_a_response_format(train: Callable[..., JobFolder]) -> None:
    schema = {"type": "object", "properties": {"word": {"enum": ["yes", "no"]}}, "required": ["word"]}
    form = {"type": "json_schema", "json_schema": {"name": "word", "schema": schema}}
    says = {"type": "string_check", "name": "says", "input": "{{sample.output_json.word}}", "reference": "yes"}
    judged = {"reward_model": None, "grader": says | {"operation": "eq"}, "response_format": form}
    told = steps(train(**judged, response_length=40, max_steps=1))[1]
    assert told["rewards/says/errors"] == 0


def test_the_reward_model_and_others_judge_by_their_weights(train: Callable[..., JobFolder], tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text(SHORT.replace(" if len(ids) > 2 else None", ""))
    functions = [f"{tmp_path}/short.py:short"]
    told = steps(train(reward_funcs=functions, reward_weights=[2.0, 0.5], max_steps=1))[1]
    weighed = 2 * told["rewards/short/mean"] + 0.5 * told["rewards/reward_model/mean"]
    assert told["objective/scores"] == pytest.approx(weighed, abs=1e-4)
    assert told["rewards/short/mean"] == pytest.approx(-told["completions/mean_length"] / 10, abs=1e-5)


@pytest.mark.parametrize(("times", "told"), [(0, 0), (2, 2), (9, 4)])
def test_sample_answers_are_told_so_often(train: Callable[..., JobFolder], times: int, told: int) -> None:
    said = [
        event.message for event, _ in train(num_sample_generations=times).read_events() if isinstance(event, Message)
    ]
    samples = [message for message in said if message.startswith("Sample before step")]
    assert len(samples) == told * 3
    assert all(" score " in sample and " -> " in sample for sample in samples)


def test_answers_that_do_not_end_lose_the_penalty(train: Callable[..., JobFolder]) -> None:
    plain, fined = (
        steps(train(name, max_steps=1, **params))[1]
        for name, params in (("a", {}), ("b", {"missing_eos_penalty": 2.0}))
    )
    open_ends = 1 - plain["val/num_eos_tokens"]
    assert open_ends > 0
    assert fined["objective/scores"] == pytest.approx(plain["objective/scores"] - 2 * open_ends, abs=1e-4)


@pytest.mark.parametrize("kind", [{}, {"train_type": "full"}], ids=["lora", "full"])
def test_a_model_in_bfloat16_is_trained(train: Callable[..., JobFolder], kind: dict[str, Any]) -> None:
    told = steps(train(torch_dtype="bfloat16", max_steps=2, **kind))
    assert abs(told[1]["objective/kl"]) < 1e-2
    assert told[2]["grad_norm"] > 0


def test_data_may_be_streamed(train: Callable[..., JobFolder]) -> None:
    assert [*steps(train(streaming=True))] == [1, 2, 3, 4]


def test_reward_models_that_cannot_judge_are_refused(
    train: Callable[..., JobFolder], tiny: Path, judge: Path, tmp_path: Path
) -> None:
    two = save_reward_model(tiny, tmp_path / "two", labels=2)
    cases: list[tuple[dict[str, Any], type[Exception], str, str]] = [
        ({"reward_model": str(tiny)}, UnsupportedModel, "no head", "reward_model"),
        ({"reward_model": str(two)}, UnsupportedModel, "2 outputs", "reward_model"),
        ({"reward_model": str(tmp_path / "none")}, UnsupportedModel, "cannot be loaded", "reward_model"),
        ({"reward_model_type": "qwen2"}, InvalidRequest, "llama", "reward_model_type"),
        ({"reward_adapters": [str(tmp_path / "none")]}, TuneserveError, "none", "reward_adapters"),
    ]
    for i, (given, error, words, param) in enumerate(cases):
        with pytest.raises(error, match=words) as refused:
            train(f"job-{i}", **given)
        assert isinstance(refused.value, TuneserveError)
        assert refused.value.param == param


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"reward_model": None}, ("reward_funcs", "name what judges")),
        ({"num_mini_batches": 3}, ("num_mini_batches", "no 3 equal parts")),
        ({"whiten_rewards": True}, ("whiten_rewards", "at least 8")),
        ({"lora_dropout": 0.1}, ("lora_dropout", "leave it out")),
        ({"neftune_noise_alpha": 5}, ("neftune_noise_alpha", "leave it out")),
        ({"ref_model_revision": "main"}, ("ref_model_revision", "is not given")),
        ({"train_type": "adalora"}, ("train_type", "adalora")),
        ({"init_weights": "pissa"}, ("init_weights", "pissa")),
        ({"lora_bias": "all"}, ("lora_bias", "share their biases")),
        ({"beta": 0.2}, ("beta", "only rlhf_type")),
    ],
)
def test_what_it_does_not_take_is_refused_by_name(params: dict[str, Any], told: tuple[str, str]) -> None:
    given = {"rlhf_type": "ppo", "model": "m", "dataset": "d", "reward_model": "r", "gradient_accumulation_steps": 4}
    task = RlhfTask(params=RlhfParams.model_validate(given | params))
    assert told[1] in dict(refusals(task))[told[0]]
