"""A base model whose weights are quantised while it is loaded: the engine says of it, and of adapters on it, what
transformers and PEFT say of the same quantised model."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    DynamicCache,
    LlamaConfig,
)

from engines.checkpoint.loading import load_config, load_model, load_tokenizer
from engines.checkpoint.quantization import Quantization
from engines.checkpoint.quantize import keep_unpacked
from engines.checkpoint.size import bytes_of_weights
from engines.pt.layers.quantized_linear import QuantizedLinear
from engines.pt.runner import ModelRunner
from engines.types import GenerationRequest, PoolingRequest
from tests.engines.pt.adapters import load, save_adapter
from tests.engines.pt.driving import TOLERANCE, Answer, Reference, core_of, prompt, request, run, settings
from tests.engines.pt.test_parity import check
from tests.engines.pt.tiny import SIZES, VOCAB_SIZE, save
from tests.gguf_files import write_gguf
from tests.hqq import FOLDER
from tests.quantized_folders import SAVED
from tests.training.jobs import ROOT

WAYS = {
    "nf4": Quantization(method="bnb", bits=4),
    "fp4 without double quantisation": Quantization(method="bnb", bits=4, quant_type="fp4", double_quant=False),
    "torchao with 8 bits": Quantization(method="torchao", bits=8),
    "torchao with 4 bits": Quantization(method="torchao", bits=4),
}
INT8 = Quantization(method="bnb", bits=8)
BLOCKS = (3, 8, 17, 30)
"""Lengths of prompts: on, before and behind the borders of blocks."""


@pytest.fixture(params=WAYS)
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


def asked(adapter: str | None, logprobs: int = 3) -> list[GenerationRequest]:
    return [
        request(prompt(n), f"{adapter} {n}", adapter=adapter, max_new_tokens=5, ignore_eos=True, logprobs=logprobs)
        for n in BLOCKS
    ]


@pytest.mark.demo
def test_the_demo_model_in_nf4_writes_what_it_writes_in_transformers_and_peft_with_bitsandbytes(
    demo_model: Path, tmp_path: Path
) -> None:
    as_nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    bare = AutoModelForCausalLM.from_pretrained(demo_model, quantization_config=as_nf4, dtype=torch.float32)
    keep_unpacked(bare)  # bitsandbytes would round their scales to bfloat16
    adapted = get_peft_model(bare, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.eval().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(demo_model))
    texts = ["The capital of France is", "Once upon a time", "def fibonacci(n):"]
    prompts = {text: tokenizer(text).input_ids for text in texts}
    core = core_of(ModelRunner(settings(demo_model, quantization=WAYS["nf4"])))
    load(core, a=tmp_path)

    answers = run(
        core,
        [
            request(ids, f"{adapter} {text}", adapter=adapter, max_new_tokens=12, ignore_eos=True)
            for text, ids in prompts.items()
            for adapter in (None, "a")
        ],
    )

    def written(text: str) -> list[int]:
        ids = torch.tensor([prompts[text]])
        with torch.inference_mode():
            made = adapted.generate(input_ids=ids, max_new_tokens=12, eos_token_id=-1, do_sample=False)
        return made[0, ids.shape[1] :].tolist()

    for text in texts:
        assert answers[f"a {text}"].tokens == written(text)
        with adapted.disable_adapter():
            assert answers[f"None {text}"].tokens == written(text)
        assert answers[f"None {text}"].tokens != answers[f"a {text}"].tokens


def check_answers(model: Path, adapter: Path, quantization: Quantization | None) -> None:
    """Answers of base and adapter in one batch are those of transformers and PEFT on the model as quantised."""
    core = core_of(ModelRunner(settings(model, quantization=quantization)), max_num_batched_tokens=24)
    load(core, a=adapter)

    answers = run(core, [*asked(None), *asked("a")])

    check(Reference(loaded(model, quantization)), asked(None), answers)
    check(Reference(PeftModel.from_pretrained(loaded(model, quantization), adapter).eval()), asked("a"), answers)


def test_answers_of_base_and_adapter_in_one_batch_are_those_of_transformers_and_peft(
    way: str, folder: Callable[[str], Path], adapter: Path
) -> None:
    check_answers(folder("llama"), adapter, WAYS[way])
    quantised, plain = (Reference(loaded(folder("llama"), each)) for each in (WAYS[way], None))
    assert not torch.allclose(quantised.logits(prompt(17)), plain.logits(prompt(17)), atol=1e-2)


def test_where_hqq_quantises_they_are_too(folder: Callable[[str], Path], adapter: Path) -> None:
    """In a process that finds HQQ as it imports PEFT."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{FOLDER}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.engines.pt.layers.serves_on_hqq", str(folder("llama")), str(adapter)]
    subprocess.run(command, check=True, env=environment, cwd=ROOT, timeout=300)


def step_by_step(model: Any, asked: GenerationRequest, tokens: list[int]) -> Tensor:
    """(tokens, vocab_size) log-probabilities for each of `tokens`, computed as an engine does it that has nothing else
    to do: the prompt at once, then one token after another."""
    rows, cache = [], DynamicCache(config=model.config)
    for ids in (asked.prompt_ids, *([token] for token in tokens[:-1])):
        with torch.inference_mode():
            made = model(input_ids=torch.tensor([ids]), past_key_values=cache)
        rows.append(made.logits[0, -1].log_softmax(-1))
    return torch.stack(rows)


def told(answer: Answer) -> Tensor:
    """(tokens, vocab_size) log-probabilities, of an answer that tells those of all tokens."""
    rows = torch.empty(len(answer.tokens), VOCAB_SIZE)
    for row, one in zip(rows, answer.outputs[0].logprobs, strict=True):
        ids, values = zip(*one.top, strict=True)
        row[list(ids)] = torch.tensor(values)
    return rows


def divergence(truth: Tensor, other: Tensor) -> Tensor:
    """(tokens,) Kullback-Leibler divergences in nats."""
    return (truth.exp() * (truth - other)).sum(-1)


def test_where_bitsandbytes_rounds_by_the_batch_what_is_computed_beside_others_differs_by_less_than_quantising_does(
    folder: Callable[[str], Path], adapter: Path
) -> None:
    """Alone it is what transformers and PEFT say, for each token but those where a rounding in a layer turns on the
    last bit of a number."""
    core = core_of(ModelRunner(settings(folder("llama"), quantization=INT8)))
    load(core, a=adapter)
    requests = {name: asked(name, logprobs=VOCAB_SIZE) for name in (None, "a")}
    alone = {one.request_id: run(core, [one])[one.request_id] for each in requests.values() for one in each}
    core.forget_prefixes()
    together = run(core, [one for each in requests.values() for one in each])

    exact, beside, quantising = [], [], []
    for name, each in requests.items():
        base, plain = loaded(folder("llama"), INT8), loaded(folder("llama"), None)
        if name is not None:
            base, plain = (PeftModel.from_pretrained(model, adapter).eval() for model in (base, plain))
        for one in each:
            answer = alone[one.request_id]
            truth = step_by_step(base, one, answer.tokens)
            off = (told(answer) - truth).abs().amax(-1)
            assert off[0] < TOLERANCE
            exact.append(off < TOLERANCE)
            answer = together[one.request_id]
            truth = step_by_step(base, one, answer.tokens)
            beside.append(divergence(truth, told(answer)))
            quantising.append(divergence(step_by_step(plain, one, answer.tokens), truth))
    assert torch.cat(exact).float().mean() > 0.8
    assert 0 < torch.cat(beside).mean() < torch.cat(quantising).mean() / 3


def test_the_weights_that_count_are_the_packed_ones(way: str, folder: Callable[[str], Path]) -> None:
    check_bytes(folder("llama"), WAYS[way])


def check_bytes(model: Path, quantization: Quantization) -> None:
    quantised, plain = loaded(model, quantization), loaded(model, None)

    numbers = sum(each.weight.numel() for each in plain.model.layers.modules() if isinstance(each, nn.Linear))
    saved = bytes_of_weights(plain.model.layers) - bytes_of_weights(quantised.model.layers)
    bits = 8 if quantization.method == "torchao" else 4
    scales = 14 * 2000  # at most, of layers as small as these
    assert 0 <= numbers * (32 - bits) // 8 - saved < scales
    assert bytes_of_weights(plain) == sum(each.nbytes for each in (*plain.parameters(), *plain.buffers()))


def test_a_model_that_bitsandbytes_saved_quantised_needs_no_parameter(
    folder: Callable[[str], Path], adapter: Path, tmp_path: Path
) -> None:
    loaded(folder("llama"), WAYS["nf4"]).save_pretrained(tmp_path)
    check_answers(tmp_path, adapter, None)


@pytest.mark.parametrize("form", SAVED)
def test_a_model_that_another_program_saved_quantised_answers_as_the_weights_that_it_stands_for(
    form: str, folder: Callable[[str], Path], adapter: Path, tmp_path: Path
) -> None:
    meant = loaded(folder("llama"), None)
    meant.load_state_dict(SAVED[form](folder("llama"), tmp_path / "saved"))
    runner = ModelRunner(settings(tmp_path / "saved"))
    assert all(
        (type(layer.mlp.up_proj) is QuantizedLinear) == ("fp8" not in form) for layer in runner.model.model.layers
    )
    core = core_of(runner)
    load(core, a=adapter)

    answers = run(core, [*asked(None), *asked("a")])

    check(Reference(meant), asked(None), answers)
    check(Reference(PeftModel.from_pretrained(meant, adapter).eval()), asked("a"), answers)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_a_gguf_file_answers_as_the_weights_that_it_stands_for(kind: str, tmp_path: Path) -> None:
    model = save(LlamaConfig(**SIZES | {"intermediate_size": 64, "tie_word_embeddings": True}), tmp_path / "model")
    meant, adapter = loaded(model, None), save_adapter(model, tmp_path / "adapter")
    meant.load_state_dict(write_gguf(meant, tmp_path / "model.gguf", kind), strict=False)
    runner = ModelRunner(settings(tmp_path / "model.gguf"))
    assert runner._decoder is not None
    assert {type(layer) for layer in (runner.model.lm_head, runner.model.model.layers[0].self_attn.q_proj)} == {
        QuantizedLinear
    }
    core = core_of(runner)
    load(core, a=adapter)

    answers = run(core, [*asked(None), *asked("a")])

    check(Reference(meant), asked(None), answers)
    check(Reference(PeftModel.from_pretrained(meant, adapter).eval()), asked("a"), answers)


def test_a_model_that_classifies_is_quantised_but_for_its_head(folder: Callable[[str], Path], tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder("llama"), num_labels=3).save_pretrained(tmp_path)
    core = core_of(ModelRunner(settings(tmp_path, quantization=WAYS["nf4"])))
    ids = prompt(9)

    answers = run(core, [PoolingRequest(request_id="r", prompt_ids=ids, task="classify")])

    truth = loaded(tmp_path, WAYS["nf4"], task_type="seq_cls", own_head=True)
    with torch.inference_mode():
        logits = truth(input_ids=torch.tensor([ids])).logits[0].tolist()
    assert answers["r"].pooled == pytest.approx(logits, abs=1e-3)
