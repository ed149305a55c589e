"""What a training would take of memory, against what its tensors take."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from engines.checkpoint.loading import load_config, load_model
from engines.errors import InvalidRequest
from server.commands.memory_table import lines_of
from tests.training.jobs import make_data, make_job, make_model
from training.folder import Memory
from training.memory import estimate as estimating
from training.memory.device import Device
from training.memory.estimate import estimate
from training.memory.lengths import Lengths, lengths_of
from training.memory.peak import Peak
from training.memory.step import Batch, Learner, pass_through, peak_of_step
from training.memory.weightless import built, tuned
from training.params.rlhf import RlhfParams
from training.params.sft import SftParams
from training.report import Report
from training.run import run
from training.trainers.weights.low_rank import in_one_piece
from training.trainers.weights.precision import hold, precision_of
from training.tuners import tuner_of

LENGTHS = Lengths(longest=24, learned=10, learned_on_average=10)
ROOMY = Device("cpu", 1 << 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("memory") / "model"))


@pytest.fixture(autouse=True)
def _roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "this_device", lambda: ROOMY)


def estimated(model: str, lengths: Lengths = LENGTHS, **params: Any) -> Memory:
    given: dict[str, Any] = {"model": model, "torch_dtype": "float32", "lora_dropout": 0} | params
    kind = RlhfParams if "rlhf_type" in given else SftParams
    return estimate(kind(**given), load_config(model), lengths)


def test_tensors_are_counted_from_when_they_are_made_until_they_are_let_go() -> None:
    a = torch.ones(1000)
    with Peak(vocab_size=7) as peak:
        b = a + 1  # 4000 bytes, the first that is made
        c = b * 2  # 4000 more
        del b
        d = c + c
        del c, d
        e = torch.zeros(10, 7)  # logits, made when the others are gone

    assert peak.parts == {"activations": 8000}
    assert e.shape == (10, 7)


@pytest.mark.parametrize("train_type", ["lora", "full", "boft", "fourierft", "longlora", "llamapro", "reft", "adapter"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_without_memory_takes_what_the_step_itself_takes(
    model: str, train_type: str, checkpointing: bool
) -> None:
    params = SftParams(
        model=model, torch_dtype="float32", train_type=train_type, gradient_checkpointing=checkpointing, lora_dropout=0,
        llamapro_num_new_blocks=2, fourier_n_frequency=10,
    )  # fmt: skip
    config = load_config(model)
    precision, batch = precision_of(params, config), Batch(texts=2, tokens=24, learned=20)
    weightless = tuned(built(config, torch.float32, params), params, precision)

    without_memory = peak_of_step([Learner(weightless)], batch, autocast=None, accumulates=False).parts

    real = tuner_of(params).attach(
        load_model(model, config=load_config(model), dtype=torch.float32, device_map="cpu"), params
    )
    hold(real.model, precision)
    in_one_piece(real.model)
    real.model.train()
    if checkpointing:
        real.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert without_memory == counted(real.model, batch)


def counted(model: nn.Module, batch: Batch) -> dict[str, int]:
    """The same of a step of a model that has memory."""
    peak = Peak(model.config.get_text_config().vocab_size)
    peak.hold(model)
    with peak:
        pass_through([Learner(model)], batch, None)
    return peak.parts


def test_weights_and_what_adam_keeps_are_those_of_the_model(model: str) -> None:
    lora, full = estimated(model), estimated(model, train_type="full")
    config = load_config(model)
    real = load_model(model, config=config, dtype=torch.float32, device_map="cpu")
    weights = sum(each.numel() * 4 for each in real.parameters())

    adapted = tuner_of(SftParams()).attach(real, SftParams(lora_dropout=0)).model
    learning = sum(each.numel() * 4 for each in adapted.parameters() if each.requires_grad)
    assert full.parts["optimizer"] == 2 * weights
    assert lora.parts["optimizer"] == 2 * learning
    assert 0 <= lora.parts["weights"] - (weights + learning) < 1000  # buffers


def test_of_divided_layers_a_process_has_its_part_and_all_that_stays_whole(model: str) -> None:
    alone, two = (estimated(model, train_type="full", tensor_model_parallel_size=size) for size in (1, 2))
    real = AutoModelForCausalLM.from_pretrained(model)
    divided = sum(each.weight.numel() * 4 for each in real.modules() if isinstance(each, nn.Linear))

    assert alone.parts["weights"] - two.parts["weights"] == divided // 2
    assert alone.parts["optimizer"] - two.parts["optimizer"] == 2 * divided // 2
    assert alone.parts["gradients"] > two.parts["gradients"]


def test_layers_that_rest_have_no_gradients_and_nothing_of_them_is_kept(model: str) -> None:
    lisa, full = (estimated(model, train_type="full", lisa_activated_layers=number) for number in (1, 0))
    real = AutoModelForCausalLM.from_pretrained(model)
    resting = sum(each.numel() * 4 for each in real.model.layers[0].parameters()) * (len(real.model.layers) - 1)

    assert full.parts["optimizer"] - lisa.parts["optimizer"] == 2 * resting
    assert full.parts["gradients"] > lisa.parts["gradients"]
    with pytest.raises(InvalidRequest, match="name fewer"):
        estimated(model, train_type="full", lisa_activated_layers=len(real.model.layers))


@pytest.mark.parametrize(
    "asked",
    [
        {"use_galore": True, "galore_rank": 4, "galore_optim_per_parameter": True},
        {"optim": "apollo_adamw_layerwise", "optim_args": {"rank": 4}},
    ],
)
def test_gradients_that_go_at_once_are_not_held_together(model: str, asked: dict[str, Any]) -> None:
    each = estimated(model, train_type="full", gradient_checkpointing=False, **asked)
    largest = max(weight.numel() * 4 for weight in AutoModelForCausalLM.from_pretrained(model).parameters())

    assert each.parts.get("gradients", 0) <= largest


def test_a_quantised_base_takes_what_its_packed_weights_take(model: str) -> None:
    plain, packed = estimated(model), estimated(model, quant_method="bnb", quant_bits=4)
    config = load_config(model)
    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(config).model.layers
    numbers = sum(each.weight.numel() for each in layers.modules() if isinstance(each, nn.Linear))

    assert plain.parts["weights"] - packed.parts["weights"] == numbers * 4 - int(numbers * (0.5 + 1 / 64))
    assert packed.parts["optimizer"] == plain.parts["optimizer"]


def test_a_mixture_of_experts_is_estimated_in_float32_too(tmp_path: Path) -> None:
    experts = str(make_model(tmp_path / "experts", "qwen3-moe"))
    weights = sum(each.numel() * 4 for each in AutoModelForCausalLM.from_pretrained(experts).parameters())

    full = estimated(experts, train_type="full")

    assert full.parts["optimizer"] == 2 * weights
    assert 0 < full.parts["gradients"] <= weights


def test_what_takes_more_is_said_to_take_more(model: str) -> None:
    usual = estimated(model, gradient_checkpointing=False).total

    assert estimated(model, gradient_checkpointing=False, per_device_train_batch_size=2).total > usual
    assert estimated(model, Lengths(48, 10, 10), gradient_checkpointing=False).total > usual
    assert estimated(model, gradient_checkpointing=True).total < usual
    assert estimated(model, gradient_checkpointing=False, train_type="full").total > usual
    assert estimated(model, gradient_checkpointing=False, gradient_accumulation_steps=2).total >= usual


def test_methods_have_beside_the_model_what_they_ask(model: str) -> None:
    dpo = estimated(model, rlhf_type="dpo", train_type="full")
    named = estimated(model, rlhf_type="dpo", ref_model=model)
    drawn = estimated(model, rlhf_type="grpo", num_generations=2, per_device_train_batch_size=2, beta=0)

    assert (dpo.texts, named.texts, drawn.texts) == (2, 2, 2)
    assert dpo.parts["reference"] == dpo.parts["optimizer"] // 2  # the weights as they were
    assert named.parts["reference"] > 0
    assert drawn.parts["rollouts"] == named.parts["reference"]  # the base model again
    assert "reference" not in drawn.parts


def test_where_it_does_not_fit_changes_are_proposed_that_take_less(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "this_device", lambda: Device("cpu", 1000))

    memory = estimated(
        model, Lengths(300, 290, 290), train_type="full", gradient_checkpointing=False, per_device_train_batch_size=4
    )

    assert not memory.fits
    assert [list(each.parameters) for each in memory.smaller] == [
        ["gradient_checkpointing"],
        ["per_device_train_batch_size", "gradient_accumulation_steps"],
        ["per_device_train_batch_size", "gradient_accumulation_steps"],
        ["max_length"],
        ["train_type"],
    ]
    assert all(each.total < memory.total and not each.fits for each in memory.smaller)
    said = list(lines_of(memory))
    assert said[0] == "The largest batch: 4 x 300 tokens. When most memory is in use:"
    assert said[-1].startswith("  --train_type lora: 0.0")


def test_the_largest_batch_is_made_of_the_longest_row() -> None:
    rows = [{"input_ids": [1] * n, "labels": [-100] * 2 + [1] * (n - 2)} for n in (4, 8)]
    pairs = [{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}]
    prompts = [{"prompt_ids": [1, 2], "completion_ids": []}]

    assert lengths_of(rows, "answers") == Lengths(8, 6, 4, rows=2, different=2, different_learned=2)
    assert lengths_of(pairs, "pairs") == Lengths(4, 3, 3)
    assert lengths_of(prompts, "prompts", drawn=5) == Lengths(7, 5, 5, different=5, different_learned=5)


def test_a_dry_run_prepares_the_data_and_says_what_it_would_take_and_trains_nothing(model: str, tmp_path: Path) -> None:
    job = make_job(
        tmp_path / "job", "sft", model=model, dataset=[str(make_data(tmp_path / "data.jsonl"))], dry_run=True,
        torch_dtype="float32", split_dataset_ratio=0,
    )  # fmt: skip

    result = run(job, Report(job))

    assert result is not None and result.status == "succeeded" and result.artifact is None
    assert result.memory is not None and result.memory.tokens > 5
    assert json.loads(result.model_dump_json())["memory"]["parts"]["weights"] > 0
    assert not job.checkpoints()
