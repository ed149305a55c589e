"""`python -m tests.training.trains_on_hqq FOLDER`, where HQQ can be imported: a job's training on a base model that HQQ
quantised. What it wrote is held to PEFT alone, and each kind of training learns or is refused."""

import sys
from pathlib import Path

import torch
from peft import PeftModel

from engines.checkpoint.loading import load_config, load_model
from engines.checkpoint.quantization import quantization_of
from tests.training.jobs import seen_trainers
from tests.training.tuners.kinds import KINDS
from training.folder import JobFolder
from training.params.sft import SftParams
from training.params.task import TASK
from training.refusals.supported import refusals
from training.report import Report
from training.run import run
from training.trainers.model import load_base_config, load_for_training
from training.tuners import tuner_of

IDS = torch.tensor([[3, 17, 5, 60, 9, 22]])


def learns_alone(params: SftParams, learning_rate: float) -> None:
    """A few steps without a trainer."""
    torch.manual_seed(params.seed)
    model = tuner_of(params).attach(load_for_training(params, load_base_config(params), torch.float32), params).model
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate)
    losses = []
    for _ in range(4):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def main(job: JobFolder) -> None:
    params = job.read_task().training
    assert params is not None and params.model is not None
    with seen_trainers() as trainers:
        result = run(job, Report(job))
    assert result is not None and result.status == "succeeded", result
    base = load_model(
        params.model,
        config=load_config(params.model),
        dtype=torch.float32,
        device_map="cpu",
        quantization=quantization_of(params),
    )
    with torch.inference_mode():
        alone = PeftModel.from_pretrained(base, str(job.path / "checkpoint-4"))(input_ids=IDS).logits
        learned = trainers[0].model.eval()(input_ids=IDS).logits
    assert (alone - learned).abs().max() < 1e-5
    for kind in KINDS:
        given = {"model": params.model, "dataset": ["d"], "quant_method": "hqq", "quant_bits": 4}
        task = TASK.validate_python({"task": "sft", "params": given | {**kind.settings, **kind.choice}})
        if found := refusals(task):
            assert dict(found).keys() <= {"quant_method", *kind.choice}, kind.name
        else:
            assert task.training is not None
            learns_alone(task.training, kind.settings.get("learning_rate", 1e-2))


if __name__ == "__main__":
    main(JobFolder(Path(sys.argv[1])))
