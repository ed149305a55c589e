"""What is told of a model from its configuration."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import transformers_weight_conversion as of_peft
from transformers import AutoModelForCausalLM

from engines.checkpoint.structure import EXPERTS, describe
from tests.engines.pt.tiny import CONFIGS


def target_parameters(config: Any, **targets: Any) -> set[str]:
    """The weights without a layer of their own that PEFT adapts."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        adapted: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **targets))
    return set(adapted.peft_config["default"].target_parameters or ())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "qwen3-moe", "qwen2-moe", "phimoe"])
def test_experts_are_told_where_peft_adapts_them(name: str) -> None:
    config = CONFIGS[name]()
    structure = describe(config)
    assert bool(structure.experts) is bool(target_parameters(config, target_modules="all-linear"))
    for expert in structure.experts:
        owner, _, leaf = expert.rpartition(".")
        if leaf in ("w1", "w3", "gate_proj", "up_proj"):  # which PEFT wants together
            pair = {"w1": "w3", "w3": "w1", "gate_proj": "up_proj", "up_proj": "gate_proj"}[leaf]
            assert target_parameters(config, target_modules=[expert, f"{owner}.{pair}"]) == {"gate_up_proj"}
        else:
            assert target_parameters(config, target_modules=[expert])


def test_names_of_experts_are_pefts() -> None:
    assert {kind: set(names) for kind, names in EXPERTS.items()} == {
        kind: set(names) for kind, names in of_peft._MOE_TARGET_MODULE_MAPPING.items()
    }
