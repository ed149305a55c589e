"""LLaMA Pro: more layers, which alone learn. What it has in common with others is in test_kinds.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engines.errors import InvalidRequest, UnsupportedModel
from engines.pt.config import PtConfig
from engines.pt.runner import ModelRunner
from tests.engines.pt.tiny import CONFIGS, WINDOW
from tests.training.jobs import losses, make_job, make_model
from training import tuners
from training.folder import JobFolder
from training.params.sft import SftParams
from training.pipelines import train as pipeline
from training.refusals.supported import refusals
from training.report import Report
from training.tuners import TUNERS
from training.tuners.llamapro import grow

SETTINGS: dict[str, Any] = {
    "train_type": "llamapro", "llamapro_num_new_blocks": 2, "torch_dtype": "float32", "split_dataset_ratio": 0,
    "per_device_train_batch_size": 2, "learning_rate": 0.01, "max_steps": 4, "logging_steps": 1, "save_steps": 2,
    "report_to": ["none"],
}  # fmt: skip
IDS = torch.tensor([[3, 17, 5, 60, 9, 22] * 4])  # more than a window
FAMILIES = ["llama", "mistral", "qwen2", "qwen2-window", "qwen3", "gemma2", "gemma3", "phi3"]


@pytest.fixture
def train(tmp_path: Path, tiny: Path, lines: Path) -> Any:
    def run(name: str, task: str = "sft", **params: Any) -> JobFolder:
        job = make_job(tmp_path / name, task, **SETTINGS | {"model": str(tiny), "dataset": str(lines)} | params)
        read = job.read_task()
        assert refusals(read) == []
        assert read.training is not None
        assert pipeline.run(read.training, Report(job)).kind == "model"
        return job

    return run


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longer_model_begins_as_the_same_function_and_is_saved_as_what_it_is(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32)
    before, count = logits(model), model.config.num_hidden_layers
    new = grow(model, new_layers=2, groups=2)
    assert torch.equal(logits(model), before)
    with torch.no_grad():
        for layer in new:
            for weight in layer.parameters():
                weight += 0.1 * torch.randn_like(weight)
    after = logits(model)
    assert (after - before).abs().max() > 1e-2
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.num_hidden_layers == count + 2
    assert torch.equal(logits(loaded), after)
    asked = {"do_sample": False, "max_new_tokens": WINDOW, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, **asked), loaded.generate(IDS, **asked))  # each layer in its own cache


def test_a_window_is_that_of_the_layer_which_was_copied(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["qwen2-window"]())
    grow(model, new_layers=4, groups=2)
    assert model.config.layer_types == ["full_attention"] * 3 + ["sliding_attention"] * 3
    assert model.config.max_window_layers == 3


def test_several_new_layers_of_a_group_stand_behind_it() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    own = list(model.model.layers)
    new = grow(model, new_layers=2, groups=1)
    assert list(model.model.layers) == [*own, *new]


def test_the_new_layers_alone_learn_and_transformers_and_the_engine_load_the_result(train: Any, tiny: Path) -> None:
    job = train("job")
    checkpoint = job.path / "checkpoint-4"
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    trained = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for new, old in {0: 0, 2: 1}.items():
        layer, other = trained.model.layers[new].state_dict(), base.model.layers[old].state_dict()
        assert all(torch.equal(layer[name], other[name]) for name in layer)
    assert (logits(trained) - logits(base)).abs().max() > 1e-3
    runner = ModelRunner(PtConfig(model=str(checkpoint), dtype="float32"))
    assert runner.model.config.num_hidden_layers == 4


def test_what_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(train: Any) -> None:
    """In bfloat16, of which a checkpoint has the model, and beside it what is learned in float32."""
    whole = train("whole", torch_dtype="bfloat16")
    resumed = train("resumed", torch_dtype="bfloat16", resume_from_checkpoint=str(whole.path / "checkpoint-2"))
    assert list(losses(resumed).values()) == list(losses(whole).values())[2:]
    first, second = (load_file(job.path / "checkpoint-4" / "model.safetensors") for job in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("params", "refused"),
    [
        ({"lora_rank": 4}, ("lora_rank", "only train_type lora or ")),
        ({"adapters": ["a"]}, ("adapters", "merge it first")),
        ({"resume_from_checkpoint": "c", "resume_only_model": True}, ("resume_only_model", "put in more layers")),
        ({"llamapro_num_groups": 3}, ("llamapro_num_groups", "4 new layers have no 3 equal groups")),
    ],
)
def test_what_it_does_not_read_is_refused(params: dict[str, Any], refused: tuple[str, str]) -> None:
    ((name, reason),) = tuners.refusals(SftParams.model_validate({"train_type": "llamapro"} | params))
    assert (name, refused[1] in reason) == (refused[0], True)


def test_layers_that_cannot_be_divided_are_refused_before_the_model_is_loaded(train: Any) -> None:
    with pytest.raises(InvalidRequest, match="2 layers have no 4 equal groups; there may be 1, 2") as refused:
        train("job", llamapro_num_new_blocks=4)
    assert refused.value.param == "llamapro_num_new_blocks"


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_a_model_of_other_layers_is_refused(train: Any, tmp_path: Path, family: str) -> None:
    with pytest.raises(UnsupportedModel, match="does not know") as refused:
        train("job", model=str(make_model(tmp_path / "other", family)))
    assert refused.value.param == "train_type"


def test_it_is_attached_without_weights_to_tell_what_it_takes() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS["gemma3"]())
        params = SftParams.model_validate({"train_type": "llamapro", "llamapro_num_new_blocks": 2})
        tuned = TUNERS["llamapro"].attach(model, params)
    assert sum(weight.requires_grad for weight in tuned.model.parameters()) == 2 * len(
        [*model.model.layers[0].parameters()]
    )


def test_an_engine_that_judges_by_the_base_model_loads_the_base_model(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    before = logits(model)
    params = SftParams.model_validate({"train_type": "llamapro", "llamapro_num_new_blocks": 2})
    tuned = TUNERS["llamapro"].attach(model, params)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1
    assert not torch.equal(logits(model), before)
    with tuned.source(str(tiny)) as folder:
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), before)
