"""A quantised export is loaded again by each engine that reads it, and says what its weights say; the others say that
they do not read it."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.checkpoint.loading import load_config, load_model
from engines.errors import TuneserveError
from engines.pt.runner import ModelRunner
from engines.vllm.client import environment
from engines.vllm.config import VllmConfig
from tests.contract.engines import answer
from tests.engines.lmdeploy.engines import lmdeploy_on_cpu
from tests.engines.pt.driving import TOLERANCE, Reference, core_of, request, run, settings
from tests.engines.pt.tiny import byte_level_tokenizer
from tests.engines.vllm.tiny import TINY, needs_vllm, save_for_vllm
from tests.hqq import importable
from tests.training.exports.readers import DOCS, FORMS, NOT_RUN, YES, Form, page
from tests.training.jobs import TEMPLATE, make_data, make_job
from training.params.export import ExportParams
from training.pipelines import export
from training.report import Report

WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
PROMPT = list(b"hello world")
PATIENCE = 300
"""Seconds after which something has not happened."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[Form, Path]:
    """A tiny model in each form."""
    root = tmp_path_factory.mktemp("exports")
    model = save_for_vllm(root / "model", positions=512, **WIDE)
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    by_data = {"dataset": [str(make_data(root / "rows.jsonl"))], "group_size": 32}
    return {form: exported(root / form.name, model, form, by_data if form.calibrated else {}) for form in FORMS}


def exported(folder: Path, model: Path, form: Form, more: dict[str, Any]) -> Path:
    job = make_job(folder, "export", model=str(model), **form.asked, **more)
    params = job.read_task().params
    assert isinstance(params, ExportParams)
    with importable() if form.name == "hqq-4" else nullcontext():
        result = export.run(params, Report(job))
    return job.path / str(result.artifact)


def meant(folder: Path) -> Any:
    """The weights that it stands for, in transformers, in float32."""
    return load_model(str(folder), config=load_config(str(folder)), dtype=torch.float32, device_map="cpu")


def logprobs(folder: Path, *, rounds_inputs: bool = False) -> Tensor:
    """`rounds_inputs`: those of all layers but the head, to 8 bits a row."""
    model = meant(folder)
    if rounds_inputs:
        for path, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and path != "lm_head":
                layer.register_forward_pre_hook(lambda _, given: in_8_bits(*given))
    return Reference(model).logits(PROMPT)[-1].log_softmax(-1)


def in_8_bits(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_pt_reads_it(exports: dict[Form, Path], form: Form) -> None:
    """bitsandbytes rounds activations to 8 bits by all rows that it computes at once: there only the first token, after
    the prompt alone, is what one pass says."""
    if form.name in ("fp8", "w8a8"):
        pytest.importorskip("compressed_tensors")
    core = core_of(ModelRunner(settings(exports[form])))
    asked = request(PROMPT, max_new_tokens=4, ignore_eos=True, logprobs=3)
    (made,) = run(core, [asked]).values()
    truth = logprobs(exports[form])
    told = made.outputs[0].logprobs[0].top
    assert told[0][0] == truth.argmax()
    assert dict(told) == pytest.approx({token: truth[token].item() for token, _ in told}, abs=TOLERANCE)
    if form.name != "bnb-8":
        Reference(meant(exports[form])).check_greedy(asked, made.outputs[0])


@pytest.fixture(scope="module")
def told_by_vllm(exports: dict[Form, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("vllm") / "told.json"
    words = (str(file), json.dumps(PROMPT), *map(str, exports.values()))
    subprocess.run(
        [sys.executable, "-m", "tests.engines.vllm.reading", *words],
        env=os.environ | environment(VllmConfig(**TINY, model="")),
        check=True,
        timeout=PATIENCE,
    )
    told: dict[str, Any] = json.loads(file.read_bytes())
    return told


def has_tiles() -> bool:
    """Whether the CPU has AMX."""
    return bool(torch.cpu._is_amx_tile_supported())


@needs_vllm
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_vllm_reads_it_or_says_why_not(exports: dict[Form, Path], told_by_vllm: dict[str, Any], form: Form) -> None:
    """Its kernels compute in bfloat16, and with AMX round the inputs of layers that are packed in 4 bits to 8."""
    told = told_by_vllm[str(exports[form])]
    if form.vllm != YES:
        assert form.vllm in told
        return
    truth = logprobs(exports[form], rounds_inputs=form.name in ("gptq-4", "awq-4") and has_tiles())
    assert told[0][0] == truth.argmax()
    assert dict(told) == pytest.approx({token: truth[token].item() for token, _ in told}, abs=0.6)


@pytest.mark.asyncio
@pytest.mark.parametrize("form", [form for form in FORMS if form.lmdeploy != NOT_RUN], ids=lambda form: form.name)
async def test_lmdeploy_reads_it_or_says_why_not(exports: dict[Form, Path], form: Form) -> None:
    """It computes with 4-bit weights in float16."""
    engine = lmdeploy_on_cpu(str(exports[form]), dtype=None)
    try:
        await engine.start()
        told = (await answer(engine, request(PROMPT, max_new_tokens=4, ignore_eos=True, logprobs=3))).logprobs[0].top
    except TuneserveError as error:
        assert form.lmdeploy in error.message
        return
    finally:
        await engine.stop()
    assert form.lmdeploy == YES
    truth = logprobs(exports[form])
    assert told[0][0] == truth.argmax()
    assert dict(told) == pytest.approx({token: truth[token].item() for token, _ in told}, abs=0.1)


def test_the_table_of_the_docs_says_so() -> None:
    assert DOCS.read_text() == page(), "python -m tests.training.exports.readers writes it"
