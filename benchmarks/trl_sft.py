"""Supervised fine-tuning with TRL alone, as its documentation shows it: `python -m benchmarks.trl_sft SETTINGS.json`.

The peer that our job is measured against: what it adds to TRL must cost next to nothing. Writes
`train_runtime.json` into the output folder: {"train_runtime": seconds}.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(settings: dict[str, Any]) -> None:
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    output = Path(settings["output_dir"])
    arguments = SFTConfig(
        output_dir=str(output),
        model_init_kwargs={"dtype": settings["dtype"], "quantization_config": nf4(settings)},
        per_device_train_batch_size=settings["batch_size"],
        max_steps=settings["steps"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        weight_decay=settings["weight_decay"],
        max_length=settings["max_length"],
        packing=settings["packing"],
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
        use_dora=settings["dora"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    data = load_dataset("json", data_files=settings["dataset"], split="train")
    adapter = None if settings["full"] else lora
    trainer = SFTTrainer(model=settings["model"], args=arguments, train_dataset=data, peft_config=adapter)
    done = trainer.train()
    trainer.save_model()
    (output / "train_runtime.json").write_text(json.dumps({"train_runtime": done.metrics["train_runtime"]}))


def nf4(settings: dict[str, Any]) -> Any:
    if not settings["nf4"]:
        return None
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, settings["dtype"]),
    )


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
