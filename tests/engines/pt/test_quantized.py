"""A base model whose weights are quantised while it is loaded: the engine says of it, and of adapters on it, what
transformers and PEFT say of the same quantised model."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification

from engines.checkpoint.loading import load_config, load_model
from engines.checkpoint.quantization import Quantization
from engines.checkpoint.size import bytes_of_weights
from engines.pt.runner import ModelRunner
from engines.types import GenerationRequest, PoolingRequest
from tests.engines.pt.adapters import load, save_adapter
from tests.engines.pt.driving import Reference, core_of, prompt, request, run, settings
from tests.engines.pt.test_parity import check

HQQ = pytest.mark.skipif(find_spec("hqq") is None, reason="hqq is not installed")
WAYS = {
    "nf4": Quantization(method="bnb", bits=4),
    "fp4 without double quantisation": Quantization(method="bnb", bits=4, quant_type="fp4", double_quant=False),
    "torchao with 8 bits": Quantization(method="torchao", bits=8),
    "torchao with 4 bits": Quantization(method="torchao", bits=4),
    "hqq": Quantization(method="hqq", bits=4),
}
INT8 = Quantization(method="bnb", bits=8)
BLOCKS = (3, 8, 17, 30)
"""Lengths of prompts: on, before and behind the borders of blocks."""


@pytest.fixture(params=[pytest.param(way, marks=HQQ if way == "hqq" else ()) for way in WAYS])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def adapter(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(folder("llama"), tmp_path_factory.mktemp("adapter"))


def loaded(model: Path, quantization: Quantization | None, **more: Any) -> Any:
    return load_model(
        str(model),
        config=load_config(str(model)),
        dtype=torch.float32,
        device_map="cpu",
        quantization=quantization,
        attn_implementation="eager",
        **more,
    )


def asked(adapter: str | None) -> list[GenerationRequest]:
    return [
        request(prompt(n), f"{adapter} {n}", adapter=adapter, max_new_tokens=5, ignore_eos=True, logprobs=3)
        for n in BLOCKS
    ]


def test_answers_of_base_and_adapter_in_one_batch_are_those_of_transformers_and_peft(
    way: str, folder: Callable[[str], Path], adapter: Path
) -> None:
    core = core_of(ModelRunner(settings(folder("llama"), quantization=WAYS[way])), max_num_batched_tokens=24)
    load(core, a=adapter)

    answers = run(core, [*asked(None), *asked("a")])

    base = Reference(loaded(folder("llama"), WAYS[way]))
    check(base, asked(None), answers)
    check(Reference(PeftModel.from_pretrained(loaded(folder("llama"), WAYS[way]), adapter).eval()), asked("a"), answers)
    plain = Reference(loaded(folder("llama"), None))
    assert not torch.allclose(base.logits(prompt(17)), plain.logits(prompt(17)), atol=1e-2)


def test_where_bitsandbytes_rounds_to_8_bits_by_the_batch_answers_are_nearly_those_of_transformers_and_peft(
    folder: Callable[[str], Path], adapter: Path
) -> None:
    core = core_of(ModelRunner(settings(folder("llama"), quantization=INT8)))
    load(core, a=adapter)

    answers = run(core, [*asked(None), *asked("a")])

    base = loaded(folder("llama"), INT8)
    for name in (None, "a"):
        truth = Reference(base if name is None else PeftModel.from_pretrained(base, adapter).eval())
        for one in asked(name):
            said = answers[one.request_id].outputs[0].logprobs[0]
            logprobs = truth.logits(one.prompt_ids)[-1].log_softmax(-1)
            assert said.logprob == pytest.approx(logprobs[said.token_id].item(), abs=0.3)


def test_the_weights_that_count_are_the_packed_ones(way: str, folder: Callable[[str], Path]) -> None:
    quantised, plain = loaded(folder("llama"), WAYS[way]), loaded(folder("llama"), None)

    numbers = sum(each.weight.numel() for each in plain.model.layers.modules() if isinstance(each, nn.Linear))
    saved = bytes_of_weights(plain.model.layers) - bytes_of_weights(quantised.model.layers)
    bits = 8 if way.startswith("torchao") else 4
    scales = 14 * 2000  # at most, of layers as small as these
    assert 0 <= numbers * (32 - bits) // 8 - saved < scales
    assert bytes_of_weights(plain) == sum(each.nbytes for each in (*plain.parameters(), *plain.buffers()))


def test_a_model_that_was_saved_quantised_needs_no_parameter(
    folder: Callable[[str], Path], adapter: Path, tmp_path: Path
) -> None:
    loaded(folder("llama"), WAYS["nf4"]).save_pretrained(tmp_path)
    core = core_of(ModelRunner(settings(tmp_path)))
    load(core, a=adapter)

    answers = run(core, [*asked(None), *asked("a")])

    check(Reference(loaded(tmp_path, None)), asked(None), answers)
    check(Reference(PeftModel.from_pretrained(loaded(tmp_path, None), adapter).eval()), asked("a"), answers)


def test_a_model_that_classifies_is_quantised_but_for_its_head(folder: Callable[[str], Path], tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder("llama"), num_labels=3).save_pretrained(tmp_path)
    core = core_of(ModelRunner(settings(tmp_path, quantization=WAYS["nf4"])))
    ids = prompt(9)

    answers = run(core, [PoolingRequest(request_id="r", prompt_ids=ids, task="classify")])

    truth = loaded(tmp_path, WAYS["nf4"], task_type="seq_cls", own_head=True)
    with torch.inference_mode():
        logits = truth(input_ids=torch.tensor([ids])).logits[0].tolist()
    assert answers["r"].pooled == pytest.approx(logits, abs=1e-3)
