"""ReFT and Houlsby's adapters, modules beside the model's weights. What they have in common with others is in
test_kinds.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from engines.adapters.folder import read_adapter
from engines.capabilities import AdapterSupport
from engines.errors import InvalidAdapter, InvalidRequest, UnsupportedModel, UnsupportedParameter
from server.fine_tuning.servable import check_servable
from tests.engines.pt.tiny import CONFIGS
from tests.training.jobs import losses, make_job, make_model
from training import tuners
from training.folder import JobFolder, Step
from training.layers.inserted import insert, inserted, load_inserted, switched_off
from training.layers.interventions import INTERVENTIONS
from training.layers.reft import Edit
from training.methods import METHODS
from training.methods import refusals as refused_by_methods
from training.params.export import MergeParams
from training.params.sft import SftParams
from training.pipelines import merge
from training.pipelines import train as pipeline
from training.refusals.supported import refusals
from training.report import Report
from training.trainers.job.job import train as train_with_it

SETTINGS: dict[str, Any] = {
    "torch_dtype": "float32", "split_dataset_ratio": 0, "per_device_train_batch_size": 2, "learning_rate": 0.01,
    "max_steps": 3, "logging_steps": 1, "save_steps": 3, "report_to": ["none"],
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "adapter": {"train_type": "adapter", "adapter_length": 8},
    "reft": {"train_type": "reft", "reft_args": {"dropout": 0.1, "act_fn": "gelu"}},
}
DEFAULTS = {"reft_layers": None, "reft_rank": 4, "reft_args": None}
IDS = torch.tensor([[3, 17, 5, 60, 9, 22]])


class Training:
    """Jobs in this process, and the models that they trained."""

    def __init__(self, folder: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: dict[Path, Any] = {}
        self._folder = folder
        self._given = given
        monkeypatch.setattr(pipeline, "train", self._train)

    def _train(self, trainer: Any) -> Any:
        self.models[trainer.job.report.folder.path] = trainer.model
        return train_with_it(trainer)

    def __call__(self, name: str, task: str = "sft", **params: Any) -> JobFolder:
        job = make_job(self._folder / name, task, **SETTINGS | self._given | params)
        read = job.read_task()
        assert refusals(read) == []
        assert read.training is not None
        assert pipeline.run(read.training, Report(job)).kind == "adapter"
        return job


@pytest.fixture
def train(tmp_path: Path, tiny: Path, lines: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(tmp_path, {"model": str(tiny), "dataset": str(lines)}, monkeypatch)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_it_alone_and_the_model_without_it_is_as_it_was(
    kind: str, train: Training, tiny: Path
) -> None:
    job = train("job", **KINDS[kind] | {"max_steps": 1})
    checkpoint = job.path / "checkpoint-1"
    assert {path.name for path in checkpoint.iterdir()} >= {"inserted_config.json", "inserted_model.safetensors"}
    assert not {path.name for path in checkpoint.iterdir()} & {"model.safetensors", "config.json"}
    trained = train.models[job.path]
    assert load_file(checkpoint / "inserted_model.safetensors").keys() == inserted(trained).keys()
    with switched_off(trained):
        assert torch.equal(logits(trained), logits(plain(tiny)))


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_with_what_was_trained_before(kind: str, train: Training) -> None:
    taught = train("taught", **KINDS[kind])
    settings: dict[str, Any] = {"train_type": kind, "load_args": False, "adapters": [str(taught.path / "checkpoint-3")]}
    after = train("after", **settings)
    assert losses(after)[1] < losses(taught)[1]
    said = json.loads((after.path / "checkpoint-3" / "args.json").read_text())
    assert {name: said[name] for name in KINDS[kind]} == KINDS[kind]
    with pytest.raises(InvalidRequest, match="goes on with its own"):
        train("other", **settings | {"train_type": ({*KINDS} - {kind}).pop()})


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    rows = [{"query": f"number {i}", "response": "the red and", "rejected_response": "the value"} for i in range(6)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_the_reference_of_dpo_is_the_model_without_it(train: Training, tiny: Path, pairs: str) -> None:
    """ReFT begins as another model than the base."""
    dpo = KINDS["reft"] | {"rlhf_type": "dpo", "rpo_alpha": 0, "dataset": pairs, "max_steps": 2}
    job, beside = train("job", "rlhf", **dpo), train("beside", "rlhf", **dpo, ref_model=str(tiny))
    told, named = (
        [event.metrics["rewards/margins"] for event, _ in each.read_events() if isinstance(event, Step)]
        for each in (job, beside)
    )
    assert told == named
    assert told[0] != 0


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3", "mixtral"])
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_many_families_take_it(kind: str, family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32)
    before = logits(model)
    settings = {"adapter_length": 4, "adapter_act": "gelu"}
    insert(model, kind, settings if kind == "adapter" else DEFAULTS | {"reft_intervention_type": "LoreftIntervention"})
    begun = logits(model)
    assert torch.equal(begun, before) is (kind == "adapter")
    count = model.config.num_hidden_layers
    assert sum(name.endswith("inserted") for name, _ in model.named_modules()) == count * (
        2 if kind == "adapter" else 1
    )
    with torch.no_grad():
        for weight in inserted(model).values():
            weight += 0.1 * torch.randn_like(weight)
    assert (logits(model) - begun).abs().max() > 1e-3


def by_pyreft(kind: str, edit: Any, h: torch.Tensor) -> torch.Tensor:
    """What pyreft computes, as its source says it for each."""
    rotate, source = edit.r(), edit.source
    if kind == "LoreftIntervention":
        return h + (source(h) - h @ rotate) @ rotate.T
    if kind == "NoreftIntervention":
        return h + (source(h) - (h @ rotate + edit.bias)) @ rotate.T
    if kind == "ConsreftIntervention":
        return h + (source - h @ rotate) @ rotate.T
    if kind == "LobireftIntervention":
        return h + source @ rotate.T
    return h + source(h) @ rotate.T


@pytest.mark.parametrize("kind", INTERVENTIONS)
def test_each_intervention_computes_what_pyreft_does(kind: str) -> None:
    torch.manual_seed(0)
    edit = Edit(16, 4, INTERVENTIONS[kind], add_bias="add_bias" in INTERVENTIONS[kind].args)
    if edit.bias is not None:
        nn.init.normal_(edit.bias)
    h = torch.randn(2, 5, 16)
    torch.testing.assert_close(edit(h), by_pyreft(kind, edit, h))
    half = edit(h.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), edit(h), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", [name for name, made_of in INTERVENTIONS.items() if made_of.orthonormal])
def test_the_rotation_stays_one_under_weight_decay(kind: str) -> None:
    torch.manual_seed(0)
    edit = Edit(16, 4, INTERVENTIONS[kind])
    began = edit.r().detach().clone()
    optimizer = torch.optim.AdamW(edit.parameters(), lr=0.05, weight_decay=0.5)
    h, wanted = torch.randn(8, 16), torch.randn(8, 16)
    for _ in range(100):
        optimizer.zero_grad()
        (edit(h) - wanted).square().mean().backward()
        optimizer.step()
    r = edit.r()
    torch.testing.assert_close(r.T @ r, torch.eye(4))
    assert (r - began).abs().max() > 0.1


def test_it_is_neither_merged_nor_served_and_says_so_by_name(train: Training, tiny: Path, tmp_path: Path) -> None:
    checkpoint = train("job", **KINDS["reft"] | {"max_steps": 1}).path / "checkpoint-1"
    with pytest.raises(InvalidAdapter, match="cannot be merged"):
        merge.run(MergeParams(model=str(tiny), adapters=[str(checkpoint)]), Report(JobFolder(tmp_path)))
    with pytest.raises(InvalidAdapter, match="not served"):
        read_adapter(checkpoint, AdapterSupport(max_rank=8, linears={}))
    with pytest.raises(InvalidAdapter, match="does not fit"):
        load_inserted(AutoModelForCausalLM.from_config(CONFIGS["gemma2"]()), checkpoint)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_served_or_drawn_from_is_refused_before_it_trains(kind: str) -> None:
    with pytest.raises(UnsupportedParameter, match=r"no engine serves.*in Python") as refused:
        check_servable(SftParams(train_type=kind), AdapterSupport(max_rank=64, linears={"q_proj": (8, 8)}))
    assert refused.value.param == "parameters.train_type"
    for name in ("grpo", "rloo", "ppo", "gkd"):
        params = METHODS[name].params(
            train_type=kind, **METHODS[name].choice, **dict.fromkeys(METHODS[name].needs, "x")
        )
        assert "train_type" in dict(refused_by_methods(params)), name
    head = METHODS["rm"].params(train_type=kind, rlhf_type="rm")
    assert tuners.refusals(head) == [("train_type", f"{kind} trains no head: choose lora or full")]


@pytest.mark.parametrize(
    ("params", "refused"),
    [
        ({"reft_args": {"dtype": "bfloat16"}}, ("reft_args", "has no 'dtype': it takes act_fn, dropout")),
        ({"reft_args": {"add_bias": True}}, ("reft_args", "has no 'add_bias'")),
        ({"reft_args": {"dropout": 2}}, ("reft_args", "a part")),
        ({"reft_args": {"act_fn": "x"}}, ("reft_args", "one of gelu")),
        (
            {"reft_args": {"dropout": 0}, "reft_intervention_type": "ConsreftIntervention"},
            ("reft_args", "it takes none"),
        ),
        ({"adapter_length": 4}, ("adapter_length", "only train_type adapter reads it")),
    ],
)
def test_what_it_does_not_read_is_refused(params: dict[str, Any], refused: tuple[str, str]) -> None:
    ((name, reason),) = tuners.refusals(SftParams.model_validate({"train_type": "reft"} | params))
    assert (name, refused[1] in reason) == (refused[0], True)


@pytest.mark.parametrize("given", [{"reft_layers": [2]}, {"reft_layers": [-1]}, {"reft_rank": 33}])
def test_layers_and_ranks_that_the_model_has_not_are_refused_before_it_is_loaded(
    given: dict[str, Any], train: Training
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        train("job", train_type="reft", **given)
    assert refused.value.param in given


def test_a_model_without_such_parts_is_refused(train: Training, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no self_attn") as refused:
        train("job", train_type="adapter", model=str(make_model(tmp_path / "other", "gpt2")))
    assert refused.value.param == "train_type"


@pytest.mark.parametrize("other", [{"reft_rank": 2}, {"reft_layers": [0]}])
def test_a_checkpoint_of_another_shape_is_not_resumed(other: dict[str, Any], train: Training) -> None:
    checkpoint = train("job", **KINDS["reft"] | {"max_steps": 1}).path / "checkpoint-1"
    with pytest.raises(InvalidRequest, match="was trained with another") as refused:
        train("again", **KINDS["reft"] | other, load_args=False, resume_from_checkpoint=str(checkpoint))
    assert refused.value.param in other
