"""The loop on a quantised base: what is served with `quant_method` is what a fine-tuning job trains on, and its adapter
answers on it."""

from pathlib import Path

import torch
from peft import PeftModel

from engines.checkpoint.loading import load_config, load_model
from engines.checkpoint.quantization import quantization_of
from engines.params.deploy import DeployParams
from engines.pt.config import pt_config
from engines.pt.runner import ModelRunner
from server.fine_tuning.record import FineTuning
from server.fine_tuning.task import DataFiles, final_task
from tests.engines.pt.adapters import load
from tests.engines.pt.driving import Reference, core_of, prompt, request, run
from tests.engines.pt.test_parity import check
from tests.training.jobs import make_data, make_model
from training.auto import Hyperparameters
from training.folder import JobFolder
from training.report import Report
from training.run import run as run_job


def test_a_job_trains_on_the_base_as_it_is_served_and_its_adapter_answers_on_it(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    served = DeployParams(
        model=str(model), torch_dtype="float32", quant_method="bnb", quant_bits=4, block_size=8, threads=1
    )
    data = DataFiles(training=make_data(tmp_path / "rows.jsonl"), validation=None, adapter=None)
    asked_for = FineTuning(
        model="m", name="ft:m:o::1", owner="o", training_file="f", validation_file=None, method="supervised",
        wanted=Hyperparameters(), suffix=None, seed=1, parameters={"lora_rank": 4},
    )  # fmt: skip
    chosen = Hyperparameters(n_epochs=2, batch_size=4, learning_rate_multiplier=100.0)
    task = final_task(asked_for, data, served, chosen=chosen, rows=12)
    (tmp_path / "job").mkdir()
    job = JobFolder(tmp_path / "job")
    job.write_task(task)

    result = run_job(job, Report(job))

    assert result is not None and result.artifact is not None, result
    adapter = job.path / result.artifact
    core = core_of(ModelRunner(pt_config(served)))
    load(core, tuned=adapter)
    asked = [
        request(prompt(n), f"r{n}", adapter="tuned", max_new_tokens=4, ignore_eos=True, logprobs=3) for n in (3, 9)
    ]
    base = load_model(
        str(model), config=load_config(str(model)), dtype=torch.float32, device_map="cpu",
        attn_implementation="eager", quantization=quantization_of(task.params),
    )  # fmt: skip
    check(Reference(PeftModel.from_pretrained(base, adapter).eval()), asked, run(core, asked))
