"""The loss on a CPU is TRL's loss, to the gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from tests.engines.pt.tiny import byte_level_tokenizer
from training.data.encode import IGNORED
from training.loss import answer_loss


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
def test_training_with_it_goes_as_with_trl_alone(more: dict[str, object], tmp_path: Path) -> None:
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
