"""PEFT adapters of the tiny models with random weights, and PEFT's own answers with them."""

import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from engines.adapters.folder import read_adapter
from engines.adapters.spec import AdapterSpec
from engines.errors import TuneserveError
from engines.pt.core import EngineCore
from engines.pt.runner import ModelRunner
from tests.engines.pt.driving import Reference

PATIENCE = 60
"""Seconds after which something has not happened."""


def save_adapter(model: Path, folder: Path, *, seed: int = 0, save: Any = "auto", **config: Any) -> Path:
    """Write an adapter as PEFT does, with weights that change every answer. `config` is of LoraConfig."""
    plain = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | config
    adapted = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **config))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
            elif "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(folder, save_embedding_layers=save)
    return folder


def save_head_adapter(model: Path, folder: Path, *, num_labels: int = 1, seed: int = 0, **config: Any) -> Path:
    """The same, trained to classify: with a head of its own beside the low-rank updates."""
    torch.manual_seed(seed)
    plain = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=num_labels, ignore_mismatched_sizes=True, attn_implementation="eager"
    )
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | config
    adapted = get_peft_model(plain, LoraConfig(task_type="SEQ_CLS", **config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
            elif "modules_to_save" in name:
                parameter.normal_(std=0.4)
    adapted.save_pretrained(folder)
    return folder


def classify_with_peft(model: Path, adapter: Path, num_labels: int, ids: list[int]) -> list[float]:
    """The logits of PEFT's own model, which has the adapter beside its weights."""
    plain = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=num_labels, ignore_mismatched_sizes=True, attn_implementation="eager"
    )
    adapted = PeftModel.from_pretrained(plain, adapter).eval()
    with torch.inference_mode():
        logits: list[float] = adapted(input_ids=torch.tensor([ids])).logits[0].tolist()
    return logits


def with_peft(model: Path, adapter: Path, *, merged: bool = True) -> Reference:
    """What PEFT computes with the adapter: merged into the weights, or beside them."""
    plain = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    adapted = PeftModel.from_pretrained(plain, adapter).eval()
    return Reference(adapted.merge_and_unload() if merged else adapted)


def spec_of(runner: ModelRunner, folder: Path) -> AdapterSpec:
    return read_adapter(folder, runner.lora.support)


def load(core: EngineCore, **folders: Path) -> None:
    """Load adapters by the names of their versions, and step until they are there."""
    for version, folder in folders.items():
        core.adapters.load(version, folder, pinned=False)
    arrived: dict[str, TuneserveError | None] = {}
    deadline = time.monotonic() + PATIENCE
    while len(arrived) < len(folders):
        assert time.monotonic() < deadline, "they never came"
        arrived |= {arrival.version: arrival.error for arrival in core.step().adapters}
        time.sleep(0.001)
    assert arrived == dict.fromkeys(folders)
