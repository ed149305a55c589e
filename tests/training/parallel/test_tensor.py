"""Models whose layers two processes divide have the gradients of whole ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedConfig, Qwen2Config

from engines.errors import InvalidRequest, UnsupportedModel
from tests.engines.pt.tiny import CONFIGS, SIZES
from tests.training.jobs import ROOT
from tests.training.parallel.gradients import MODELS
from training.params.sft import SftParams
from training.sharding.tensor import check, check_adapter
from training.trainers.weights.precision import precision_of
from training.trainers.weights.tensor import check_layers

CLOSE = 1e-4


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    file = tmp_path_factory.mktemp("gradients") / "differences.json"
    command = [sys.executable, "-m", "tests.training.parallel.gradients", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, dict[str, float]] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_divided_layers_are_those_of_whole_ones(
    differences: dict[str, dict[str, float]], model: str
) -> None:
    far = {name: number for name, number in differences[model].items() if not number < CLOSE}

    assert len(differences[model]) > 8
    assert far == {}


@pytest.mark.parametrize(
    ("config", "size", "words"),
    [
        (CONFIGS["llama"](), 4, "num_key_value_heads 2 cannot be shared evenly by 4: choose 2"),
        (CONFIGS["llama"](), 3, "num_attention_heads 4 and num_key_value_heads 2 cannot be shared evenly by 3"),
        (Qwen2Config(**SIZES | {"num_key_value_heads": 1}), 2, "num_key_value_heads 1 .* no number of processes can"),
        (GPT2Config(), 2, "no plan by which layers of gpt2 are divided"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused_with_the_numbers_that_do(
    config: PreTrainedConfig, size: int, words: str
) -> None:
    with pytest.raises(UnsupportedModel, match=words) as error:
        check(config, size)
    assert error.value.param == "tensor_model_parallel_size"


def test_an_adapter_of_experts_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["qwen3-moe"]())
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))

    with pytest.raises(UnsupportedModel, match=r"needs whole weights, .* name other layers") as error:
        check_adapter(adapted.get_base_model())
    assert error.value.param == "target_modules"


def test_one_process_has_nobody_to_share_layers_with_but_tells_what_each_would_take(tiny: Path) -> None:
    config = CONFIGS["llama"]()
    alone, looks = (SftParams(model=str(tiny), tensor_model_parallel_size=2, dry_run=dry) for dry in (False, True))

    check_layers(looks, config, precision_of(looks, config))
    with pytest.raises(InvalidRequest, match="1 process does not make groups of 2"):
        check_layers(alone, config, precision_of(alone, config))
