"""Models whose positions are stretched while they are trained: they are loaded, served and drawn from alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engines.errors import UnsupportedModel
from engines.pt.config import PtConfig
from engines.pt.runner import ModelRunner
from tests.engines.pt.tiny import EOS, POSITIONS
from tests.training.jobs import make_job
from training.params.sft import SftParams
from training.params.task import TASK
from training.pipelines import train as pipeline
from training.refusals.supported import refusals
from training.report import Report
from training.rollouts.engine import EngineRollouts
from training.rollouts.types import Drawing
from training.trainers.model import load_base_config, load_for_training

LENGTH = 2 * POSITIONS


def stretched(tiny: Path, kind: str) -> Any:
    params = SftParams.model_validate({"model": str(tiny), "rope_scaling": kind, "max_length": LENGTH})
    return load_for_training(params, load_base_config(params), torch.float32)


def frequencies(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.model.rotary_emb.inv_freq
    return found


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_the_engine_draws_what_the_stretched_model_says(kind: Any, tiny: Path) -> None:
    model = stretched(tiny, kind)
    settings: dict[str, Any] = {"dtype": torch.float32, "stop_token_ids": [EOS]}
    engine = EngineRollouts(model, source=str(tiny), max_model_len=LENGTH, rope_scaling=kind, **settings)
    prompt = [3, 17, 5, 60, 9, 22]
    [[drawn]] = engine.draw([prompt], 1, Drawing(max_new_tokens=12, temperature=0.0), seed=0)
    said = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=EOS, pad_token_id=0)
    assert list(drawn.token_ids) == said[0, len(prompt) :].tolist()
    assert not torch.equal(frequencies(model), frequencies(AutoModelForCausalLM.from_pretrained(tiny)))


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_what_is_trained_whole_says_it_itself(kind: str, tiny: Path, lines: Path, tmp_path: Path) -> None:
    job = make_job(
        tmp_path / "job", "sft", model=str(tiny), dataset=str(lines), train_type="full", torch_dtype="float32",
        split_dataset_ratio=0, max_steps=1, report_to=["none"], rope_scaling=kind, max_length=LENGTH,
    )  # fmt: skip
    task = job.read_task()
    assert refusals(task) == []
    assert task.training is not None
    checkpoint = job.path / str(pipeline.run(task.training, Report(job)).artifact)
    asked: Any = {} if kind == "linear" else {"rope_scaling": kind}  # one goes by its factor, the other by the length
    served = ModelRunner(PtConfig(model=str(checkpoint), dtype="float32", max_model_len=LENGTH, **asked))
    assert torch.equal(frequencies(served.model), frequencies(stretched(tiny, kind)))
    if kind == "linear":
        alone = AutoModelForCausalLM.from_pretrained(checkpoint)
        assert alone.config.max_position_embeddings == LENGTH
        assert torch.equal(frequencies(alone), frequencies(served.model))


def test_a_length_to_stretch_to_is_needed(tiny: Path) -> None:
    task = TASK.validate_python({"task": "sft", "params": {"model": "m", "dataset": ["d"], "rope_scaling": "linear"}})
    assert refusals(task) == [("rope_scaling", "say as max_length how many tokens the model is to take")]
    with pytest.raises(UnsupportedModel):
        load_base_config(SftParams.model_validate({"model": str(tiny), "rope_scaling": "linear"}))
