"""Training by preferences with TRL alone, as its documentation shows it:
`python -m benchmarks.trl_preferences SETTINGS.json`.

Writes `train_runtime.json` into the output folder: {"train_runtime": seconds}.
"""

import json
import sys
from pathlib import Path
from typing import Any


def dpo() -> tuple[Any, Any]:
    from trl import DPOConfig, DPOTrainer

    return DPOConfig, DPOTrainer


METHODS = {"dpo": dpo}
"""Name -> TRL's configuration and trainer."""


def main(settings: dict[str, Any]) -> None:
    from datasets import load_dataset
    from peft import LoraConfig

    configuration, trainer_class = METHODS[settings["method"]]()
    output = Path(settings["output_dir"])
    arguments = configuration(
        output_dir=str(output),
        model_init_kwargs={"dtype": settings["dtype"]},
        per_device_train_batch_size=settings["batch_size"],
        max_steps=settings["steps"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        weight_decay=settings["weight_decay"],
        max_length=settings["max_length"],
        gradient_checkpointing=settings["gradient_checkpointing"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=settings["logging_steps"],
        save_strategy="no",
        seed=settings["seed"],
        report_to=["tensorboard"],
        bf16=settings["dtype"] == "bfloat16",
        use_cpu=settings["cpu"],
    )
    lora = LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    data = load_dataset("json", data_files=settings["dataset"], split="train")
    trainer = trainer_class(model=settings["model"], args=arguments, train_dataset=data, peft_config=lora)
    done = trainer.train()
    trainer.save_model()
    (output / "train_runtime.json").write_text(json.dumps({"train_runtime": done.metrics["train_runtime"]}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
