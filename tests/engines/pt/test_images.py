"""Gemma 3's classes for images and text: what is in them for text is served, as fast as a model of text alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3Config,
    SiglipVisionConfig,
)

from engines.pt.lora.weights import read_weights
from engines.pt.runner import ModelRunner, Segment
from tests.engines.pt.adapters import save_adapter, spec_of
from tests.engines.pt.driving import Reference, core_of, prompt, request, run, settings
from tests.engines.pt.tiny import CONFIGS, save

VISION = SiglipVisionConfig(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=8,
    patch_size=2,
)


def config(**more: Any) -> Gemma3Config:
    text = CONFIGS["gemma3"]()
    sizes = {"mm_tokens_per_image": 4, "initializer_range": text.initializer_range, "tie_word_embeddings": False}
    return Gemma3Config(text_config=text, vision_config=VISION, **sizes, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(config(), tmp_path_factory.mktemp("gemma3-images"), tokenizer=True)


def test_it_answers_as_its_class_does_computed_in_one_call(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = ModelRunner(settings(folder))
    assert chosen._decoder is not None
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert type(plain) is type(chosen.model)
    assert "undefined" not in caplog.text
    asked = [request(prompt(length), f"r{length}", ignore_eos=True, logprobs=5) for length in (1, 17, 40)]
    answers = run(core_of(chosen, max_num_batched_tokens=24), asked)
    for one in asked:
        Reference(plain).check_greedy(one, answers[one.request_id].outputs[0])


def test_what_it_has_for_images_takes_no_memory(folder: Path) -> None:
    names = {path for path, _ in ModelRunner(settings(folder)).model.named_parameters()}
    assert names and not [name for name in names if "vision" in name or "projector" in name]


def test_its_adapters_answer_as_in_peft(folder: Path, tmp_path: Path) -> None:
    chosen = ModelRunner(settings(folder, max_loras=1))
    adapter = save_adapter(folder, tmp_path, target_modules=r".*language_model.*(q_proj|o_proj|up_proj|down_proj)")
    chosen.lora.write(0, read_weights(spec_of(chosen, adapter), chosen.dtype))
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    expected = [logits_of(plain, prompt(30))]
    plain.load_adapter(str(adapter))
    expected.append(logits_of(plain, prompt(30)))
    for slot, truth in zip((-1, 0), expected, strict=True):
        found = chosen.step([Segment(prompt(30), 0, list(range(4)), 1, slot)]).logits[0]
        torch.testing.assert_close(found, truth, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(*expected, atol=0.1)


def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def test_one_that_classifies_does_so_in_one_call(tmp_path: Path) -> None:
    labelled = save(config(num_labels=3), tmp_path, tokenizer=True, kind=AutoModelForSequenceClassification)
    chosen = ModelRunner(settings(labelled))
    assert chosen.head is not None and chosen._decoder is not None
    plain = AutoModelForSequenceClassification.from_pretrained(labelled, attn_implementation="eager").eval()
    with torch.inference_mode():
        truth = plain(input_ids=torch.tensor([prompt(30)]), use_cache=False).logits[0]
    found = chosen.step([Segment(prompt(30), 0, list(range(4)), 1)]).logits[0]
    torch.testing.assert_close(found, truth, atol=1e-3, rtol=1e-3)
