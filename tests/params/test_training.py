"""Parameters of training: the values that need a validator."""

import pytest
from pydantic import ValidationError

from training.params.export import ExportParams, MergeParams
from training.params.rlhf import RlhfParams
from training.params.sft import SftParams


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("true", "true"),
        (False, "false"),
        ("gaussian", "gaussian"),
        ("guassian", "gaussian"),
        ("pissa_niter_16", "pissa_niter_16"),
        ("bat", "bat"),
        ("lora-ga", "lora-ga"),
    ],
)
def test_init_weights_takes_both_spellings_and_yaml_booleans(given: object, meant: str) -> None:
    assert SftParams.model_validate({"init_weights": given}).init_weights == meant


@pytest.mark.parametrize("name", ["gausian", "pissa_niter_", "pissa_niter_0", "TRUE", 1])
def test_init_weights_refuses_other_words(name: object) -> None:
    with pytest.raises(ValidationError, match="init_weights"):
        SftParams.model_validate({"init_weights": name})


@pytest.mark.parametrize("value", ["zero3_offload", {"zero_optimization": {"stage": 2}}])
def test_deepspeed_takes_a_name_or_a_configuration(value: object) -> None:
    assert SftParams.model_validate({"deepspeed": value}).deepspeed == value


def test_deepspeed_refuses_an_unknown_name() -> None:
    with pytest.raises(ValidationError, match="zero0"):
        SftParams.model_validate({"deepspeed": "zero9"})


def test_quant_method_means_another_thing_in_export() -> None:
    assert ExportParams(quant_method="awq").quant_method == "awq"
    with pytest.raises(ValidationError, match="gptq"):
        ExportParams.model_validate({"quant_method": "eetq"})
    with pytest.raises(ValidationError, match="bnb"):
        SftParams.model_validate({"quant_method": "awq"})


def test_merge_cannot_be_told_not_to_merge() -> None:
    with pytest.raises(ValidationError, match="merge_lora"):
        MergeParams(merge_lora=False)


def test_rlhf_needs_its_algorithm() -> None:
    with pytest.raises(ValidationError, match="rlhf_type"):
        RlhfParams.model_validate({})


def test_numbers_of_steps_stay_whole_and_may_be_parts() -> None:
    params = SftParams.model_validate({"save_steps": "500", "eval_steps": "0.25"})
    assert (params.save_steps, params.eval_steps) == (500, 0.25)
    assert isinstance(params.save_steps, int)
