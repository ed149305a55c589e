"""Every kind of training: it learns, goes on where it stopped, is loaded without us, merged, and served or refused."""

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engines.adapters.folder import read_adapter
from engines.adapters.plain import plain_tensors, write_plain
from engines.capabilities import AdapterSupport
from engines.errors import InvalidAdapter, InvalidRequest, UnsupportedParameter
from engines.pt.config import PtConfig
from engines.pt.runner import ModelRunner
from server.fine_tuning.servable import check_servable
from tests.engines.pt.adapters import load as load_into
from tests.engines.pt.driving import core_of, request, run
from tests.engines.pt.tiny import CONFIGS, save
from tests.training.jobs import losses, make_model, trained_by
from tests.training.tuners.kinds import DOCS, KINDS, METHODS, Kind, lora, page, with_peft
from training.folder import JobFolder
from training.params.export import MergeParams
from training.params.sft import SftParams
from training.params.task import TASK
from training.pipelines import merge
from training.refusals.supported import refusals
from training.report import Report
from training.rollouts.types import Drawing
from training.trainers.answers.rollouts import rollouts_of

QUICK: dict[str, Any] = {
    "torch_dtype": "float32", "split_dataset_ratio": 0, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
    "max_steps": 4, "logging_steps": 1, "save_steps": 2, "report_to": ["none"],
}  # fmt: skip
ALIGNED: dict[str, dict[str, Any]] = {
    "dpo": {"rpo_alpha": 0},
    "grpo": {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 4, "beta": 0.1},
}
IDS = torch.tensor([[3, 17, 5, 60, 9, 22]])
PROMPT = IDS[0].tolist()


class Shop:
    """Trainings in this process, each made once, and the trainers behind them."""

    def __init__(self, folder: Path, tiny: Path, lines: Path) -> None:
        self.folder, self.tiny = folder, tiny
        self.data = {"sft": lines, "dpo": folder / "pairs.jsonl", "grpo": folder / "prompts.jsonl"}
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
        self.data["dpo"].write_text("".join(json.dumps({**row, "rejected_response": "no"}) + "\n" for row in rows))
        prompts = [{"messages": row["messages"][:1], "solution": "red"} for row in rows]
        self.data["grpo"].write_text("".join(json.dumps(row) + "\n" for row in prompts))
        rewards = folder / "rewards.py"
        rewards.write_text(
            "def reward(completion_ids, **_):\n    return [sum(ids) % 5 / 5 for ids in completion_ids]\n"
        )
        ALIGNED["grpo"]["reward_funcs"] = [f"{rewards}:reward"]
        self.whole = cache(self._whole)

    def _whole(self, kind: Kind) -> tuple[JobFolder, torch.Tensor]:
        """A training of four steps, and what the model in it says at the end."""
        job, trainer = self.train(kind, "sft")
        return job, logits(trainer.model)

    def train(self, kind: Kind, method: str, **params: Any) -> tuple[JobFolder, Any]:
        """A job and its trainer."""
        task = "sft" if method == "sft" else "rlhf"
        given = {"model": str(self.tiny), "dataset": str(self.data[method])} | asked(kind, method) | params
        return trained_by(self.folder / f"{len([*self.folder.iterdir()])}", task, **given)


def asked(kind: Kind, method: str) -> dict[str, Any]:
    """The parameters of such a training; without dropout where a method compares what is likely."""
    given = {**QUICK, **kind.settings, **kind.choice}
    if method == "sft":
        return given
    plain = {name: value for name, value in given.items() if not name.endswith("dropout")}
    without = {"lora_dropout": 0} if "lora_dropout" in given else {}
    return plain | without | ALIGNED[method] | {"rlhf_type": method, "max_steps": 1, **kind.compared}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny: Path, lines: Path) -> Shop:
    return Shop(tmp_path_factory.mktemp("kinds"), tiny, lines)


@pytest.fixture(scope="module")
def runner(tiny: Path) -> Iterator[ModelRunner]:
    yield ModelRunner(PtConfig(model=str(tiny), dtype="float32", max_loras=1))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=IDS.to(model.device)).logits
    return found.clone()


def same(first: torch.Tensor, second: torch.Tensor, *, within: float = 1e-5) -> bool:
    """`within` so much of the largest logit, where that is more than 1."""
    return bool((first - second).abs().max() < within * max(1.0, second.abs().max().item()))


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(checkpoint)}:{name}": tensor
        for file in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_it_learns_and_what_it_writes_computes_the_same_without_it(shop: Shop, kind: Kind) -> None:
    job, learned = shop.whole(kind)
    told = losses(job)
    assert told[4] < told[1]
    before = logits(AutoModelForCausalLM.from_pretrained(shop.tiny, dtype=torch.float32))
    assert (learned - before).abs().max() > 1e-3
    assert same(logits(kind.alone(shop.tiny, job.path / "checkpoint-4")), learned)


def test_what_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(shop: Shop, kind: Kind) -> None:
    whole, _ = shop.whole(kind)
    resumed, _ = shop.train(kind, "sft", resume_from_checkpoint=str(whole.path / "checkpoint-2"))
    assert list(losses(resumed).values()) == list(losses(whole).values())[2:]
    first, second = (weights(job.path / "checkpoint-4") for job in (whole, resumed))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_it_is_merged_or_told_that_it_cannot_be(shop: Shop, kind: Kind, tmp_path: Path) -> None:
    job, learned = shop.whole(kind)
    params = MergeParams(model=str(shop.tiny), adapters=[str(job.path / "checkpoint-4")])
    if not kind.merges:
        with pytest.raises(InvalidAdapter):
            merge.run(params, Report(JobFolder(tmp_path)))
        return
    result = merge.run(params, Report(JobFolder(tmp_path)))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / result.artifact, dtype=torch.float32)
    # What LoRA-GA takes out of the base is large beside what it learns, and float32 rounds the sum.
    assert same(logits(merged), learned, within=2e-5)


def test_pt_serves_it_or_its_training_is_refused(shop: Shop, runner: ModelRunner, kind: Kind) -> None:
    if not servable(kind, runner.lora.support):
        return
    job, _ = shop.whole(kind)
    core = core_of(runner)
    load_into(core, learned=job.path / "checkpoint-4")
    (answer,) = run(core, [request(PROMPT, adapter="learned", ignore_eos=True)]).values()
    alone = kind.alone(shop.tiny, job.path / "checkpoint-4").eval()
    alone.generation_config.eos_token_id = None
    expected = alone.generate(input_ids=IDS, max_new_tokens=12, do_sample=False)
    assert answer.tokens == expected[0, len(PROMPT) :].tolist()


def test_vllm_and_lmdeploy_get_what_computes_the_same(
    shop: Shop, runner: ModelRunner, kind: Kind, tmp_path: Path
) -> None:
    support = AdapterSupport(max_rank=16, linears=runner.lora.support.linears)
    if not servable(kind, support):
        return
    job, learned = shop.whole(kind)
    spec = read_adapter(job.path / "checkpoint-4", support)
    copy = write_plain(tmp_path / "copy", plain_tensors(spec, spec.rank), rank=spec.rank, linears=spec.linears)
    assert same(logits(with_peft(shop.tiny, copy)), learned)


def servable(kind: Kind, support: AdapterSupport) -> bool:
    """Whether a fine-tuning job may train it. One that may not is told so."""
    params = SftParams.model_validate(asked(kind, "sft"))
    if kind.served == "adapter":
        check_servable(params, support)
        return True
    way_out = {"merged": "merge it", "model": "serve the result", "no": "load it in Python"}[kind.served]
    with pytest.raises(UnsupportedParameter, match=way_out) as refused:
        check_servable(params, support)
    assert refused.value.param.removeprefix("parameters.") in {"train_type", *kind.choice}
    return False


def test_dpo_begins_at_its_reference(shop: Shop, kind: Kind) -> None:
    if refused(kind, "dpo"):
        return
    job, _ = shop.train(kind, "dpo")
    assert (losses(job)[1] == pytest.approx(math.log(2), abs=1e-5)) is kind.begins_as_base


def test_grpo_draws_what_the_model_says_after_a_step(shop: Shop, kind: Kind) -> None:
    if refused(kind, "grpo"):
        return
    _, trainer = shop.train(kind, "grpo")
    engine = rollouts_of(trainer.job)
    [[drawn]] = engine.draw([PROMPT], 1, Drawing(max_new_tokens=12, temperature=0.0), seed=0)
    engine.close()
    expected = trainer.model.eval().generate(input_ids=IDS, max_new_tokens=12, do_sample=False)[0, len(PROMPT) :]
    assert list(drawn.token_ids) == expected.tolist()


def refused(kind: Kind, method: str) -> bool:
    """Whether a method does not take it, and says so."""
    if method in kind.methods:
        return False
    task = {"task": "rlhf", "params": {"model": "m", "dataset": ["d"]} | asked(kind, method)}
    found = refusals(TASK.validate_python(task))
    assert {name for name, _ in found} & {"train_type", *kind.choice}
    return True


GPT2 = ("boft", "bone", "loha", "lokr")


@pytest.mark.parametrize("train_type", GPT2)
def test_layers_for_which_peft_does_not_have_it_are_told_before_data_is_read(
    train_type: str, tmp_path: Path, shop: Shop
) -> None:
    model = save(CONFIGS["gpt2"](), tmp_path / "gpt2")
    given = {"model": str(model), "dataset": str(tmp_path / "missing.jsonl"), "train_type": train_type}
    with pytest.raises(InvalidRequest, match=rf"{train_type} changes linear layers only, and .*c_\w+ of gpt2") as told:
        trained_by(tmp_path / "job", "sft", **given)
    assert told.value.param == "train_type"


def test_an_olora_start_of_such_layers_is_told_too(tmp_path: Path, shop: Shop) -> None:
    model = save(CONFIGS["gpt2"](), tmp_path / "gpt2")
    given = {"model": str(model), "dataset": str(tmp_path / "missing.jsonl"), "init_weights": "olora"}
    with pytest.raises(InvalidRequest, match=r"olora begins with linear layers only, and .*c_\w+ of gpt2") as told:
        trained_by(tmp_path / "job", "sft", **given)
    assert told.value.param == "init_weights"


@pytest.mark.parametrize("init_weights", ["pissa", "corda", "lora-ga"])
def test_what_was_taken_out_of_such_layers_is_taken_out_again(init_weights: str, tmp_path: Path, shop: Shop) -> None:
    model = make_model(tmp_path / "gpt2", "gpt2")
    given = asked(lora(init_weights=init_weights), "sft") | {"model": str(model)}
    whole, _ = shop.train(lora(), "sft", **given)
    resumed, _ = shop.train(lora(), "sft", **given, resume_from_checkpoint=str(whole.path / "checkpoint-2"))
    assert list(losses(resumed).values()) == list(losses(whole).values())[2:]


def test_the_documentation_has_what_is_tested_here() -> None:
    assert ("sft", *ALIGNED) == METHODS
    assert DOCS.read_text() == page(), "python -m tests.training.tuners.kinds writes it"
