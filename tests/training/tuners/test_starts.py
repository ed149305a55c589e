"""What LoRA adapters start with: computed of the training's data, and the same function as before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engines.errors import InvalidRequest
from training import tuners
from training.data import build
from training.data.samples import Learns
from training.params.rlhf import RlhfParams
from training.params.sft import SftParams
from training.refusals import quantized
from training.trainers.batches.examples import DataExamples
from training.trainers.model import load_base_config, load_for_training, load_tokenizer_for
from training.tuners import tuner_of

IDS = torch.tensor([[3, 17, 5, 60, 9, 22]])
ROWS: dict[str, Any] = {
    "answers": {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
    "pairs": {"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9], "margin": 0.0},
    "labels": {"prompt_ids": [5, 6], "completion_ids": [7, 8], "label": True},
    "prompts": {"prompt_ids": [5, 6, 7, 8], "completion_ids": [], "item": "{}"},
    "classes": {"input_ids": [5, 6, 7, 8], "label": 1},
}


@pytest.fixture(scope="module")
def examples(tiny: Path, lines: Path) -> DataExamples:
    params = SftParams.model_validate({"model": str(tiny), "dataset": str(lines), "split_dataset_ratio": 0})
    tokenizer = load_tokenizer_for(params, learns="answers")
    return DataExamples(build(params, tokenizer, learns="answers").train, "answers", tokenizer.pad_token_id)


def plain(tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)


def begun(tiny: Path, examples: DataExamples, **params: Any) -> Any:
    """The model with an adapter that has learned nothing yet."""
    asked = SftParams.model_validate({"lora_rank": 4, "lora_dropout": 0, "gradient_checkpointing": False} | params)
    assert tuners.refusals(asked) == []
    return tuner_of(asked).attach(plain(tiny), asked, examples).model.eval()


@pytest.mark.parametrize("init_weights", ["orthogonal", "pissa", "olora", "eva", "corda", "lora-ga"])
def test_the_model_begins_as_it_was(tiny: Path, examples: DataExamples, init_weights: str) -> None:
    # What is taken out and added again is many times the weight: computed in float32, its rounding would be seen.
    with torch.no_grad():
        models = plain(tiny).double(), begun(tiny, examples, init_weights=init_weights).double()
        before, after = (model(IDS).logits for model in models)
    assert (after - before).abs().max() < 1e-4


def test_lora_ga_starts_with_the_directions_of_the_gradients(tiny: Path, examples: DataExamples) -> None:
    model = plain(tiny)
    for batch in [*examples(3)][:2]:
        model(**batch).loss.backward()
    expected = torch.linalg.svd(model.model.layers[1].mlp.up_proj.weight.grad).Vh[:4]
    adapted = begun(tiny, examples, init_weights="lora-ga", lora_ga_batch_size=3, lora_ga_iters=2)
    a = adapted.base_model.model.model.layers[1].mlp.up_proj.lora_A["default"].weight
    assert pytest.approx([1] * 4, abs=1e-2) == (a.detach() @ expected.T).svd().S  # the same directions, in any order


def test_eva_starts_with_the_directions_of_what_layers_get_and_divides_the_ranks(
    tiny: Path, examples: DataExamples
) -> None:
    adapted = begun(tiny, examples, init_weights="eva")
    layers = {name: module for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    ranks = [layer.r["default"] for layer in layers.values()]
    assert sum(ranks) == 4 * 14
    assert 4 < max(ranks) <= 8
    a = next(iter(layers.values())).lora_A["default"].weight
    assert torch.allclose(a @ a.T, torch.eye(len(a)), atol=1e-4)


def test_what_takes_more_directions_than_a_layer_has_is_refused(tiny: Path, examples: DataExamples) -> None:
    for init_weights in ("eva", "corda", "lora-ga"):
        with pytest.raises(InvalidRequest) as refused:
            begun(tiny, examples, init_weights=init_weights, lora_rank=40)
        assert refused.value.param == "lora_rank"


def test_samples_without_anything_to_learn_are_no_examples(tiny: Path, examples: DataExamples) -> None:
    with pytest.raises(InvalidRequest) as refused:
        begun(tiny, examples, init_weights="lora-ga", lora_ga_max_length=2)
    assert refused.value.param == "lora_ga_max_length"


def test_loftq_makes_up_for_what_was_lost_when_the_weights_were_quantised(tiny: Path, examples: DataExamples) -> None:
    given = {"quant_method": "bnb", "quant_bits": 4, "lora_rank": 8, "init_weights": "loftq", "model": str(tiny)}
    params = SftParams.model_validate({"gradient_checkpointing": False, "torch_dtype": "float32"} | given)
    assert tuners.refusals(params) == quantized.refusals(params) == []
    model = load_for_training(params, load_base_config(params), torch.float32)
    adapted = tuner_of(params).attach(model, params, examples).model.eval()
    before = plain(tiny).model.layers[1].mlp.up_proj
    layer = adapted.base_model.model.model.layers[1].mlp.up_proj
    inputs = torch.randn(64, 32)
    with torch.no_grad():
        whole, made_up, lost = before(inputs), layer(inputs), layer.base_layer(inputs)
    assert (made_up - whole).norm() < 0.8 * (lost - whole).norm()
    assert adapted.peft_config["default"].init_lora_weights is True


@pytest.mark.parametrize("learns", ROWS)
def test_every_kind_of_rows_makes_examples(tiny: Path, learns: Learns) -> None:
    (batch,) = DataExamples([ROWS[learns]] * 2, learns, 0)(2)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8]] * 2
    assert batch["attention_mask"].tolist() == [[1] * 4] * 2
    learned = {"prompts": [-100, 6, 7, 8], "classes": 1}.get(learns, [-100, -100, 7, 8])
    assert batch["labels"].tolist() == [learned] * 2


def test_of_a_packed_row_each_sample_is_one() -> None:
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9], "seq_lengths": [2, 3]}
    first, second = DataExamples([row], "answers", 0)(1, 2)
    assert (first["input_ids"].tolist(), second["input_ids"].tolist()) == ([[5, 6]], [[7, 8]])


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"init_weights": "olora", "use_dora": True}, "use_dora"),
        ({"init_weights": "lora-ga", "lora_bias": "all"}, "lora_bias"),
        ({"init_weights": "orthogonal", "lora_rank": 3}, "lora_rank"),
        ({"init_weights": "eva", "lora_ga_iters": 4}, "lora_ga_iters"),
        ({"init_weights": "lora-ga", "lora_ga_scale": "unit", "lora_ga_stable_gamma": 4}, "lora_ga_stable_gamma"),
        ({"init_weights": "bat"}, "init_weights"),
        ({"init_weights": "loftq"}, "init_weights"),
    ],
)
def test_what_does_not_go_together_is_refused(params: dict[str, Any], name: str) -> None:
    assert [refused for refused, _ in tuners.refusals(SftParams.model_validate(params))] == [name]


@pytest.mark.parametrize("init_weights", ["corda", "eva"])
def test_ppo_has_no_data_for_its_value_model(init_weights: str) -> None:
    from training import methods

    params = RlhfParams.model_validate({"rlhf_type": "ppo", "reward_model": "r", "init_weights": init_weights})
    assert "init_weights" in {name for name, _ in methods.refusals(params)}
