"""The loss on a CPU is TRL's loss, to the gradient."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
)
from trl import SFTConfig, SFTTrainer

from tests.engines.pt.tiny import CONFIGS, SIZES, byte_level_tokenizer
from tests.training.largest import largest_tensor
from training.data.encode import IGNORED
from training.losses import log_probs
from training.losses.answers import answer_loss

THREE = 3 * 300 + 1
"""Logits of three positions."""


class Ours(SFTTrainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        return answer_loss(model, inputs, num_items_in_batch).loss


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config)


def samples() -> Dataset:
    """Of several lengths, each with a prompt that is not learned."""
    made = torch.Generator().manual_seed(1)
    rows = []
    for length in (12, 7, 20, 9, 15, 6, 18, 11):
        ids = torch.randint(0, 256, (length,), generator=made).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * (length // 3) + ids[length // 3 :]})
    return Dataset.from_list(rows)


def losses(trainer: type[SFTTrainer], folder: Path, **more: Any) -> list[float]:
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=4,
        learning_rate=1e-2,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        report_to=[],
        **more,
    )
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    made = trainer(
        tiny_model(), arguments, train_dataset=samples(), processing_class=byte_level_tokenizer(), peft_config=lora
    )
    made.train()
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "more",
    [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": False}],
    ids=["plain", "accumulated", "without checkpointing"],
)
@pytest.mark.parametrize("piece", [log_probs.PIECE, THREE], ids=["whole", "in pieces"])
def test_training_with_it_goes_as_with_trl_alone(
    more: dict[str, object], piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_probs, "PIECE", piece)
    ours = losses(Ours, tmp_path / "ours", **more)

    assert ours == pytest.approx(losses(SFTTrainer, tmp_path / "trl", **more), abs=1e-4)
    assert ours[0] != pytest.approx(ours[-1], abs=1e-2)


def test_it_says_which_positions_were_right_and_whose_they_are() -> None:
    model = tiny_model()
    ids = torch.randint(0, 256, (2, 6), generator=torch.Generator().manual_seed(2))
    likeliest = model(ids).logits.argmax(-1)
    labels = torch.full_like(ids, IGNORED)
    labels[0, 3], labels[1, 5] = likeliest[0, 2], (likeliest[1, 4] + 1) % 300

    learned = answer_loss(model, {"input_ids": ids, "labels": labels}, None)

    assert learned.correct.tolist() == [True, False]
    assert learned.rows.tolist() == [0, 1]


def test_a_batch_without_anything_to_learn_has_loss_zero() -> None:
    ids = torch.zeros((1, 4), dtype=torch.long)

    assert answer_loss(tiny_model(), {"input_ids": ids, "labels": torch.full_like(ids, IGNORED)}, None).loss == 0


class Doubling(LlamaForCausalLM):
    """A model that does to its logits what no other does."""

    def forward(self, *given: Any, **named: Any) -> Any:
        outputs = super().forward(*given, **named)
        return type(outputs)(logits=outputs.logits * 2)


def of(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()  # without dropout


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: of(CONFIGS["llama"]()),
    "gemma2": lambda: of(CONFIGS["gemma2"]()),
    "cohere": lambda: of(CohereConfig(**SIZES, logit_scale=0.25)),
    "granite": lambda: of(GraniteConfig(**SIZES, logits_scaling=8.0)),
    "gpt2": lambda: of(CONFIGS["gpt2"]()),
    "mixtral": lambda: of(CONFIGS["mixtral"]()),
    "doubling": lambda: Doubling(CONFIGS["llama"]()),
}


def batch(tokens: int = 40) -> dict[str, Tensor]:
    ids = torch.randint(0, 256, (2, tokens), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, tokens // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_pieces_the_numbers_are_those_of_the_whole(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    model = MODELS[name]().to(dtype)

    def learn() -> tuple[Any, Tensor]:
        model.zero_grad()
        learned = answer_loss(model, batch(), None)
        learned.loss.backward()
        return learned, torch.cat([weight.grad.flatten() for weight in model.parameters()]).float()

    whole, gradient = learn()
    monkeypatch.setattr(log_probs, "PIECE", THREE)
    pieces, in_pieces = learn()

    near = 1e-5 if dtype == torch.float32 else 2e-2
    assert pieces.loss.item() == pytest.approx(whole.loss.item(), rel=near)
    assert pieces.correct.tolist() == whole.correct.tolist()
    assert torch.nn.functional.cosine_similarity(in_pieces, gradient, dim=0) > 1 - near
    assert in_pieces.norm() == pytest.approx(gradient.norm().item(), rel=near)
    assert ("of its own" in caplog.text) == (name == "doubling")


def test_in_pieces_no_tensor_has_the_logits_of_all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()

    def learn() -> int:
        with largest_tensor() as found:
            answer_loss(model, batch(200), None).loss.backward()
        return found.numel

    assert learn() >= 290 * 300
    monkeypatch.setattr(log_probs, "PIECE", THREE)
    others = max(2 * 4 * 200 * 200, 2 * 200 * 64)  # attention, MLP
    assert learn() <= others


def test_after_it_the_head_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probs, "PIECE", THREE)
    model = tiny_model()
    answer_loss(model, batch(), None)

    assert "forward" not in vars(model.lm_head)
    assert model(batch()["input_ids"]).logits.shape == (2, 40, 300)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "qwen2-moe"])
@pytest.mark.parametrize("piece", [log_probs.PIECE, THREE], ids=["whole", "in pieces"])
def test_the_auxiliary_loss_of_experts_is_transformers_own(
    name: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_probs, "PIECE", piece)
    model = of(CONFIGS[name]())
    inputs = batch()

    learned = answer_loss(model, inputs | {"output_router_logits": True}, None)
    assert learned.aux_loss is not None and learned.aux_loss > 0
    ours = learned.loss + model.config.router_aux_loss_coef * learned.aux_loss
    assert ours.item() == pytest.approx(model(**inputs, output_router_logits=True).loss.item(), rel=1e-5)


def test_samples_of_a_packed_row_count_one_by_one() -> None:
    ids = torch.arange(7)[None]
    inputs = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0, 1]]), "labels": ids.clone()}
    inputs["labels"][inputs["position_ids"] == 0] = IGNORED

    assert answer_loss(tiny_model(), inputs, None).rows.unique().numel() == 3
