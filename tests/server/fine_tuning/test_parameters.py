"""The extra field `parameters`: what it may hold, and what is refused by its name."""

from dataclasses import replace
from typing import Any

import pytest

from engines.capabilities import AdapterSupport
from engines.errors import InvalidRequest, UnsupportedParameter
from server.fine_tuning.parameters import check_parameters, parse
from server.fine_tuning.servable import check_servable
from training.methods import METHODS
from training.params.sft import SftParams

SUPPORT = AdapterSupport(
    max_rank=16,
    linears={"model.layers.0.self_attn.q_proj": (8, 8), "lm_head": (8, 32)},
    embeddings={"model.embed_tokens": (32, 8)},
    replaceable=frozenset({"lm_head"}),
)


def test_a_mixture_of_experts_is_trained_in_layers_that_are_named() -> None:
    dense, shared = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.shared_experts.down_proj"
    experts = replace(
        SUPPORT,
        linears=SUPPORT.linears | {dense: (8, 8), shared: (8, 8)},
        experts=frozenset({"model.layers.1.mlp.gate", "model.layers.1.mlp.experts.down_proj"}),
    )
    for served in ({"target_modules": ["q_proj", "lm_head"]}, {"target_regex": r".*\.q_proj"}):
        check_servable(SftParams.model_validate(served), experts)
    check_servable(SftParams(), SUPPORT)
    for param, values in {
        "target_modules": (["all-linear"], ["q_proj", "down_proj"], ["shared_experts.down_proj"], ["gate"]),
        "target_regex": (r".*\.(q|down)_proj", r".*\.q_proj|.*mlp\.gate", r".*\.q_proj|.*shared_experts.*"),
    }.items():
        for value in values:
            with pytest.raises(UnsupportedParameter, match="served: name layers, of lm_head, q_proj") as error:
                check_servable(SftParams.model_validate({param: value}), experts)
            assert error.value.param == f"parameters.{param}"


def check(**given: Any) -> None:
    check_parameters(given, METHODS["sft"], max_model_len=4096)


def test_parameters_of_the_command_line_pass() -> None:
    check(lora_rank=16, lora_alpha=32, target_modules=["q_proj"], warmup_ratio=0.1, packing=True, max_length=4096)


@pytest.mark.parametrize(
    "name",
    ["dataset", "rlhf_type", "model", "deepspeed", "output_dir", "hub_token", "ref_model", "strict", "report_to"],
)
def test_what_openai_has_a_field_for_and_what_the_server_chooses_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedParameter, match=f"{name} cannot be chosen") as error:
        check_parameters({name: "x"}, METHODS["dpo"], max_model_len=4096)
    assert error.value.param == f"parameters.{name}"


def test_a_model_whose_positions_are_stretched_is_trained_with_its_own_length() -> None:
    with pytest.raises(UnsupportedParameter, match="stretched to that of the served model") as error:
        check_parameters({"max_length": 64}, METHODS["sft"], max_model_len=4096, stretched=True)
    assert error.value.param == "parameters.max_length"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"lora_rang": 8}, "lora_rang"),
        ({"lora_rank": "many"}, "lora_rank"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"lora_rank": 10**9}, "lora_rank"),
        ({"max_length": 4097}, "max_length"),
        ({"per_device_eval_batch_size": 10**6}, "per_device_eval_batch_size"),
        ({"dataset_num_proc": 10**6}, "dataset_num_proc"),
        ({"dataloader_num_workers": 10**6}, "dataloader_num_workers"),
        ({"save_strategy": "no"}, "save_strategy"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_what_is_no_parameter_or_absurd_is_refused(given: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        check(**given)
    assert error.value.param == f"parameters.{param}"


def test_dpo_has_parameters_of_its_own() -> None:
    check_parameters({"label_smoothing": 0.1}, METHODS["dpo"], max_model_len=4096)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"lora_rank": 16},
        {"lora_rank": 8, "init_weights": "pissa"},
        {"target_modules": ["all-linear"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_regex": r".*\.q_proj"},
        {"modules_to_save": ["lm_head"]},
    ],
)
def test_what_can_be_served_passes(given: dict[str, Any]) -> None:
    check_servable(parse(given, METHODS["sft"]), SUPPORT)


@pytest.mark.parametrize(
    "given",
    [
        {"train_type": "full"},
        {"use_dora": True},
        {"lora_bias": "all"},
        {"lora_rank": 17},
        {"lora_rank": 9, "init_weights": "pissa"},
        {"target_modules": []},
        {"target_modules": ["nothing"]},
        {"target_modules": ["proj"]},
        {"target_regex": "q_proj"},
        {"target_regex": "("},
        {"modules_to_save": ["embed_tokens"]},
    ],
)
def test_what_can_never_be_served_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as error:
        check_servable(parse(given, METHODS["sft"]), SUPPORT)
    assert error.value.param == f"parameters.{next(iter(given))}"


def test_an_engine_without_adapters_has_nothing_to_fine_tune() -> None:
    with pytest.raises(UnsupportedParameter) as error:
        check_servable(SftParams(), None)
    assert error.value.param == "model"
