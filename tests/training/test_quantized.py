"""Training on a base model that is quantised while it is loaded: as a bare loop does it, and what is refused."""

import json
import math
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from engines.checkpoint.quantize import dequantize, keep_unpacked
from engines.errors import InvalidRequest, UnsupportedModel
from engines.pt.config import PtConfig
from engines.pt.runner import ModelRunner
from tests.engines.pt.adapters import load as load_into
from tests.engines.pt.driving import core_of, request, run
from tests.four_layers import cut
from tests.hqq import FOLDER
from tests.quantized_folders import SAVED
from tests.training.jobs import ROOT, losses, make_job, train_together, trained_by, weights
from tests.training.trains_on_hqq import learns_alone
from tests.training.tuners.kinds import KINDS, Kind
from training.folder import JobFolder, Step
from training.params.export import MergeParams
from training.params.task import TASK
from training.pipelines import merge
from training.refusals.supported import refusals
from training.report import Report
from training.rollouts.types import Drawing
from training.trainers.model import load_base_config, load_for_training

QUICK: dict[str, Any] = {
    "torch_dtype": "float32", "split_dataset_ratio": 0, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
    "max_steps": 4, "logging_steps": 1, "save_steps": 2, "report_to": ["none"],
}  # fmt: skip
NF4: dict[str, Any] = {"quant_method": "bnb", "quant_bits": 4}
WAYS: dict[str, dict[str, Any]] = {
    "nf4": NF4,
    "nf4 without double quantisation": NF4 | {"bnb_4bit_use_double_quant": False},
    "nf4, from loftq on": NF4 | {"init_weights": "loftq"},
    "bnb with 8 bits": {"quant_method": "bnb", "quant_bits": 8},
    "torchao with 8 bits": {"quant_method": "torchao", "quant_bits": 8},
}
AS_NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
IDS = torch.tensor([[3, 17, 5, 60, 9, 22]])


class Shop:
    """Trainings in this process, and the trainers behind them."""

    def __init__(self, folder: Path, tiny: Path, lines: Path) -> None:
        self.folder, self.tiny, self.lines = folder, tiny, lines
        self.whole = cache(lambda way: self.train(**WAYS[way]))

    def train(self, task: str = "sft", **params: Any) -> tuple[JobFolder, Any]:
        given = {"model": str(self.tiny), "dataset": str(self.lines)} | QUICK | params
        return trained_by(self.folder / str(len([*self.folder.iterdir()])), task, **given)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny: Path, lines: Path) -> Shop:
    return Shop(tmp_path_factory.mktemp("quantised"), tiny, lines)


def bare(base: Path, **settings: Any) -> Any:
    """The base model as transformers and bitsandbytes alone load it."""
    return AutoModelForCausalLM.from_pretrained(
        base, quantization_config=AS_NF4, device_map="cpu", dtype=torch.float32, **settings
    )


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found.clone()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_are_those_of_a_bare_loop_over_peft_and_bitsandbytes(shop: Shop, checkpointing: bool) -> None:
    begins = get_peft_model(bare(shop.tiny), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    begins.save_pretrained(shop.folder / f"begins-{checkpointing}")
    job, trainer = shop.train(
        **NF4,
        adapters=[str(shop.folder / f"begins-{checkpointing}")],
        gradient_checkpointing=checkpointing,
        per_device_train_batch_size=12,  # all of them, in each step
        lr_scheduler_type="constant",
        weight_decay=0,
        max_grad_norm=1e9,
    )

    model = prepare_model_for_kbit_training(bare(shop.tiny), use_gradient_checkpointing=checkpointing)
    model = PeftModel.from_pretrained(model, shop.folder / f"begins-{checkpointing}", is_trainable=True)
    batch = trainer.data_collator([*trainer.train_dataset])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, betas=(0.9, trainer.args.adam_beta2), weight_decay=0)
    model.train()
    for step, loss in losses(job).items():
        found = model(**inputs).loss
        assert loss == pytest.approx(found.item(), abs=1e-3), step
        found.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("way", ["nf4", "nf4, from loftq on"])
def test_a_checkpoint_computes_the_same_in_peft_alone(shop: Shop, way: str) -> None:
    job, trainer = shop.whole(way)
    alone = PeftModel.from_pretrained(bare(shop.tiny), job.path / "checkpoint-4")
    keep_unpacked(alone)  # bitsandbytes cannot pack layers as small as these, and fails in an evaluation
    assert (logits(alone) - logits(trainer.model)).abs().max() < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_it_learns_and_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(shop: Shop, way: str) -> None:
    whole, _ = shop.whole(way)
    resumed, _ = shop.train(**WAYS[way], resume_from_checkpoint=str(whole.path / "checkpoint-2"))
    told = losses(whole)
    assert told[4] < told[1]
    assert list(losses(resumed).values()) == list(told.values())[2:]
    first, second = (load_file(job.path / "checkpoint-4" / "adapter_model.safetensors") for job in (whole, resumed))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_evaluations_between_steps_change_nothing(shop: Shop) -> None:
    given = WAYS["nf4 without double quantisation"] | {"max_steps": 2, "lora_dropout": 0}
    left_alone, _ = shop.train(**given)
    evaluated, _ = shop.train(**given, val_dataset=[str(shop.lines)], eval_strategy="steps", eval_steps=1)
    assert losses(evaluated) == losses(left_alone)


@pytest.mark.parametrize("way", ["nf4", "bnb with 8 bits", "torchao with 8 bits"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_kind_of_training_learns_on_it_or_is_refused(shop: Shop, kind: Kind, way: str) -> None:
    given = {**kind.settings, **kind.choice, **WAYS[way], "torch_dtype": "float32"}
    task = TASK.validate_python({"task": "sft", "params": {"model": str(shop.tiny), "dataset": ["d"]} | given})
    if found := refusals(task):
        assert dict(found).keys() <= {"quant_method", *kind.choice}
        return
    assert task.training is not None
    learns_alone(task.training, given.get("learning_rate", 1e-2))


def test_the_reference_of_dpo_is_the_quantised_base_without_the_adapter(shop: Shop) -> None:
    rows = [json.loads(line) | {"rejected_response": "no"} for line in shop.lines.read_text().splitlines()]
    pairs = shop.folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job, _ = shop.train("rlhf", rlhf_type="dpo", dataset=str(pairs), max_steps=2, rpo_alpha=0, **NF4)
    told = losses(job)
    assert told[1] == pytest.approx(math.log(2), abs=1e-5)
    assert told[2] < told[1]


@pytest.mark.parametrize("way", ["nf4", "torchao with 8 bits"])
def test_grpo_draws_from_the_quantised_model_what_it_says_after_two_steps(shop: Shop, way: str) -> None:
    prompts = shop.folder / "prompts.jsonl"
    rows = [json.loads(line)["messages"][:1] for line in shop.lines.read_text().splitlines()]
    prompts.write_text("".join(json.dumps({"messages": row, "solution": "red"}) + "\n" for row in rows))
    rewards = shop.folder / "rewards.py"
    rewards.write_text("def reward(completion_ids, **_):\n    return [sum(ids) % 5 / 5 for ids in completion_ids]\n")
    given = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 4, "max_steps": 2}
    learning = {"rlhf_type": "grpo", "dataset": str(prompts), "reward_funcs": [f"{rewards}:reward"], **WAYS[way]}
    job, trainer = shop.train("rlhf", **learning | given)
    assert [event.step for event, _ in job.read_events() if isinstance(event, Step) and event.metrics["reward"]] == [
        1,
        2,
    ]
    ends = load_file(job.path / "checkpoint-2" / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in ends.items() if "lora_B" in name), "they begin with zeros"
    trainer._rollouts.take_over()
    [[drawn]] = trainer._rollouts.draw([IDS[0].tolist()], 1, Drawing(max_new_tokens=12, temperature=0.0), seed=0)
    expected = trainer.model.eval().generate(input_ids=IDS, max_new_tokens=12, do_sample=False)[0, IDS.shape[1] :]
    assert list(drawn.token_ids) == expected.tolist()


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"rlhf_type": "grpo", "reward_funcs": ["format"], "use_dora": True}, "quant_method"),
        ({"rlhf_type": "gkd", "teacher_model": "m", "seq_kd": True}, "seq_kd"),
        ({"rlhf_type": "gkd", "teacher_model": "m", "seq_kd": True, "lmbda": 0}, "seq_kd"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_from_it_is_refused_by_name(given: dict[str, Any], refused: str) -> None:
    task = {"task": "rlhf", "params": {"model": "m", "dataset": ["d"]} | NF4 | given}
    assert refused in dict(refusals(TASK.validate_python(task)))


def test_a_reward_model_has_a_head_of_full_precision(shop: Shop) -> None:
    rows = [json.loads(line) | {"rejected_response": "no"} for line in shop.lines.read_text().splitlines()]
    pairs = shop.folder / "judged.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, trainer = shop.train("rlhf", rlhf_type="rm", dataset=str(pairs), max_steps=1, **NF4)
    head = trainer.model.get_base_model().score
    assert head.modules_to_save["default"].weight.dtype == torch.float32


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_is_merged_into_what_quantising_left_of_the_weights(shop: Shop, tmp_path: Path, way: str) -> None:
    job, trainer = shop.whole(way)
    params, checkpoint = trainer.job.params, job.path / "checkpoint-4"
    result = merge.run(MergeParams(adapters=(str(checkpoint),)), Report(JobFolder(tmp_path)))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / result.artifact)
    left = dequantize(load_for_training(params, load_base_config(params), torch.float32))
    expected = logits(PeftModel.from_pretrained(left, checkpoint))
    assert (logits(merged) - expected).abs().max() < 1e-4
    assert type(merged.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert merged.dtype == torch.float32  # that of the model before


def test_how_the_base_was_quantised_is_told_where_the_adapter_does_not_say(shop: Shop, tmp_path: Path) -> None:
    job, _ = shop.whole("nf4")
    adapter = tmp_path / "adapter"
    shutil.copytree(job.path / "checkpoint-4", adapter)
    (adapter / "args.json").unlink()
    told = []
    for number, given in enumerate(({}, NF4)):
        (tmp_path / str(number)).mkdir()
        params = MergeParams(model=str(shop.tiny), adapters=(str(adapter),), **given)
        result = merge.run(params, Report(JobFolder(tmp_path / str(number))))
        told.append(logits(AutoModelForCausalLM.from_pretrained(tmp_path / str(number) / result.artifact)))
    checkpoint = job.path / "checkpoint-4"
    (tmp_path / "said").mkdir()
    result = merge.run(MergeParams(adapters=(str(checkpoint),)), Report(JobFolder(tmp_path / "said")))
    said = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "said" / result.artifact))
    assert told[1].equal(said)
    assert not told[0].equal(said)


@pytest.mark.demo
def test_a_merged_model_says_what_the_adapter_said_on_the_quantised_base(
    shop: Shop, demo_model: Path, tmp_path: Path
) -> None:
    """In the demo model's first layers, in bfloat16, which the sums are rounded to."""
    base = cut(demo_model, tmp_path / "base")
    job, trainer = shop.train(**NF4, model=str(base), torch_dtype="bfloat16", max_steps=2, learning_rate=1e-3)
    (tmp_path / "merge").mkdir()
    result = merge.run(MergeParams(adapters=(str(job.path / "checkpoint-2"),)), Report(JobFolder(tmp_path / "merge")))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merge" / result.artifact)
    assert merged.dtype == torch.bfloat16
    first, second = (logits(model).float().log_softmax(-1) for model in (trainer.model, merged))
    assert (first.exp() * (first - second)).sum(-1).mean() < 5e-3


def test_a_checkpoint_that_bitsandbytes_saved_is_a_base_like_the_one_that_it_was_made_of(
    shop: Shop, tmp_path: Path
) -> None:
    bare(shop.tiny).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(shop.tiny / name, tmp_path)
    saved, _ = shop.train(model=str(tmp_path), max_steps=2)
    loaded, _ = shop.train(**NF4, max_steps=2)
    assert losses(saved) == losses(loaded)
    with pytest.raises(UnsupportedModel, match=r"quantised \(bitsandbytes\), and train_type full does not learn on it"):
        shop.train(model=str(tmp_path), train_type="full")


@pytest.mark.parametrize("form", SAVED)
def test_a_checkpoint_that_another_program_saved_is_unpacked_and_trained_on(
    shop: Shop, tmp_path: Path, form: str
) -> None:
    SAVED[form](shop.tiny, tmp_path / "base")
    packed, _ = shop.train(model=str(tmp_path / "base"), max_steps=2, lora_dropout=0)
    plain, _ = shop.train(max_steps=2, lora_dropout=0)
    assert losses(packed)[1] == pytest.approx(losses(plain)[1], rel=0.1)
    assert losses(packed)[1] != losses(plain)[1]
    assert losses(packed)[2] != losses(packed)[1]


@pytest.fixture(
    scope="module", params=["awq", "fp8", "compressed-tensors with 4 bits", "compressed-tensors in fp8, inputs too"]
)
def unpacked(shop: Shop, tmp_path_factory: pytest.TempPathFactory, request: Any) -> tuple[Path, Path]:
    """A base model whose weights another program has packed, and the plain one that it stands for."""
    packed, plain = (tmp_path_factory.mktemp("packed") / name for name in ("packed", "plain"))
    meant = SAVED[request.param](shop.tiny, packed)
    save_file(meant, shutil.copytree(shop.tiny, plain) / "model.safetensors", {"format": "pt"})
    return packed, plain


@pytest.mark.parametrize(
    "given", [{"use_dora": True}, {"init_weights": "pissa"}, {"train_type": "full", "learning_rate": 1e-3}], ids=str
)
def test_one_that_is_unpacked_trains_as_the_plain_model_that_it_stands_for(
    shop: Shop, unpacked: tuple[Path, Path], given: dict[str, Any]
) -> None:
    first, second = (shop.train(model=str(base), max_steps=2, **given)[0] for base in unpacked)
    assert losses(first) == pytest.approx(losses(second), rel=1e-5)


def test_an_adapter_on_it_is_resumed_served_and_merged_into_a_plain_model(
    shop: Shop, unpacked: tuple[Path, Path], tmp_path: Path
) -> None:
    packed, plain = unpacked
    job, trainer = shop.train(model=str(packed))
    resumed, _ = shop.train(model=str(packed), resume_from_checkpoint=str(job.path / "checkpoint-2"))
    assert list(losses(resumed).values()) == list(losses(job).values())[2:]

    checkpoint, learned = job.path / "checkpoint-4", logits(trainer.model)
    core = core_of(ModelRunner(PtConfig(model=str(packed), dtype="float32", max_loras=1)))
    load_into(core, learned=checkpoint)
    (answer,) = run(core, [request(IDS[0].tolist(), adapter="learned", ignore_eos=True, logprobs=1)]).values()
    (first, logprob), *_ = answer.outputs[0].logprobs[0].top
    assert first == learned[0, -1].argmax()
    assert logprob == pytest.approx(learned[0, -1].log_softmax(-1).max().item(), abs=1e-3)

    result = merge.run(MergeParams(adapters=(str(checkpoint),)), Report(JobFolder(tmp_path)))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / result.artifact, dtype=torch.float32)
    assert (logits(merged) - learned).abs().max() < 1e-4
    assert (
        load_file(tmp_path / result.artifact / "model.safetensors").keys()
        == load_file(plain / "model.safetensors").keys()
    )
    base = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    assert (logits(PeftModel.from_pretrained(base, checkpoint)) - learned).abs().max() < 1e-4


def test_hqq_trains_and_its_adapter_loads_without_us(shop: Shop) -> None:
    """In a process that finds HQQ as it imports PEFT."""
    job = make_job(shop.folder / "hqq", "sft", model=str(shop.tiny), dataset=str(shop.lines), **QUICK | HQQ)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{FOLDER}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.trains_on_hqq", str(job.path)]
    subprocess.run(command, check=True, env=environment, cwd=ROOT, timeout=300)
    told = losses(job)
    assert told[4] < told[1]


def test_two_processes_learn_on_hqq_what_one_learns_from_batches_of_twice_the_size(shop: Shop) -> None:
    alike = {"model": str(shop.tiny), "dataset": str(shop.lines), "average_tokens_across_devices": True}
    given = QUICK | HQQ | alike | {"lora_dropout": 0, "per_device_train_batch_size": 1, "ddp_backend": "gloo"}
    one = make_job(shop.folder / "hqq-one", "sft", **given | {"per_device_train_batch_size": 2})
    two, divided = (
        make_job(shop.folder / f"hqq-{name}", "sft", **given, deepspeed=how)
        for name, how in (("two", None), ("zero2", "zero2"))
    )
    train_together(two, divided, processes=2, alone=(one,), packages=FOLDER)
    for job in (two, divided):
        assert losses(job) == pytest.approx(losses(one), abs=1e-4)
        learned, told = weights(job, 4), weights(one, 4)
        assert max((learned[name] - told[name]).abs().max().item() for name in told) < 1e-4


HQQ = {"quant_method": "hqq", "quant_bits": 3}


@pytest.mark.parametrize(
    ("given", "refused", "reason"),
    [
        (NF4 | {"train_type": "full"}, "quant_method", "trains weights, which cannot be quantised: choose lora"),
        (NF4 | {"train_type": "llamapro"}, "quant_method", "trains weights, which cannot be quantised: choose lora"),
        (
            {"quant_method": "torchao", "quant_bits": 8, "train_type": "vera"},
            "quant_method",
            "does not learn on weights of torchao",
        ),
        (NF4 | {"init_weights": "pissa"}, "init_weights", "begins with the model's weights, which are quantised"),
        (WAYS["bnb with 8 bits"] | {"use_dora": True}, "use_dora", "choose quant_bits 4"),
        (WAYS["torchao with 8 bits"] | {"deepspeed": "zero2"}, "deepspeed", "it cannot move weights of torchao"),
        ({"quant_method": "bnb"}, "quant_method", "say how many bits"),
        ({"quant_method": "eetq", "quant_bits": 8}, "quant_method", "no package of EETQ"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_on_it_is_refused_by_name(given: dict[str, Any], refused: str, reason: str) -> None:
    task = {"task": "sft", "params": {"model": "m", "dataset": ["d"]} | given}
    assert reason in dict(refusals(TASK.validate_python(task)))[refused]


def test_a_training_goes_on_with_the_base_model_that_it_had(shop: Shop) -> None:
    whole, _ = shop.whole("nf4")
    with pytest.raises(InvalidRequest, match="checkpoint-2 was trained with quant_bits 4, not 8"):
        shop.train(**WAYS["bnb with 8 bits"], resume_from_checkpoint=str(whole.path / "checkpoint-2"))


def test_quantised_layers_are_not_trained_whole(shop: Shop) -> None:
    with pytest.raises(InvalidRequest, match=r"model\.layers\.0\.self_attn\.q_proj is quantised"):
        shop.train(**NF4, target_modules=["v_proj"], modules_to_save=["q_proj"])
