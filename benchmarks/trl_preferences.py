"""Training by preferences with TRL alone, as its documentation shows it:
`python -m benchmarks.trl_preferences SETTINGS.json`.

Writes `train_runtime.json` into the output folder: {"train_runtime": seconds}, with the mean length of the answers that
the model gave, where it gave any.
"""

import json
import statistics
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

Made = tuple[Any, Any, dict[str, Any], dict[str, Any]]
"""Configuration and trainer, and what each is told besides."""
LENGTH = "completions/mean_length"


def dpo(settings: dict[str, Any]) -> Made:
    from trl import DPOConfig, DPOTrainer

    return DPOConfig, DPOTrainer, {}, {}


def kto(settings: dict[str, Any]) -> Made:
    from trl import KTOConfig, KTOTrainer

    return KTOConfig, KTOTrainer, {}, {}


def rm(settings: dict[str, Any]) -> Made:
    from trl import RewardConfig, RewardTrainer

    return RewardConfig, RewardTrainer, {}, {}


def grpo(settings: dict[str, Any]) -> Made:
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.reward_of_words import share_of_vowels

    told = {
        "num_generations": settings["answers"],
        "max_completion_length": settings["answer_tokens"],
        "temperature": 1.0,
        "beta": 0.04,
        "loss_type": "grpo",
    }
    return GRPOConfig, GRPOTrainer, told, {"reward_funcs": share_of_vowels}


METHODS = {"dpo": dpo, "kto": kto, "rm": rm, "grpo": grpo}


def main(settings: dict[str, Any]) -> None:
    from datasets import load_dataset
    from peft import LoraConfig

    configuration, trainer_class, told, besides = METHODS[settings["method"]](settings)
    output = Path(settings["output_dir"])
    common = {
        "output_dir": str(output),
        "model_init_kwargs": {"dtype": settings["dtype"]},
        "per_device_train_batch_size": settings["batch_size"],
        "max_steps": settings["steps"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "cosine",
        "weight_decay": settings["weight_decay"],
        "max_length": settings["max_length"],
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "logging_steps": settings["logging_steps"],
        "save_strategy": "no",
        "seed": settings["seed"],
        "report_to": ["tensorboard"],
        "bf16": settings["dtype"] == "bfloat16",
        "use_cpu": settings["cpu"],
    }
    known = {field.name for field in fields(configuration)}
    arguments = configuration(**{name: value for name, value in common.items() if name in known}, **told)
    is_judge = settings["method"] == "rm"
    lora = LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules="all-linear",
        task_type="SEQ_CLS" if is_judge else "CAUSAL_LM",
        modules_to_save=["score"] if is_judge else None,
    )
    data = load_dataset("json", data_files=settings["dataset"], split="train")
    trainer = trainer_class(model=settings["model"], args=arguments, train_dataset=data, peft_config=lora, **besides)
    done = trainer.train()
    trainer.save_model()
    lengths = [log[LENGTH] for log in trainer.state.log_history if LENGTH in log]
    made = {"train_runtime": done.metrics["train_runtime"]} | ({LENGTH: statistics.fmean(lengths)} if lengths else {})
    (output / "train_runtime.json").write_text(json.dumps(made))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
