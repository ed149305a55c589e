"""Every kind of training that `train_type`, `init_weights` and their like choose, and what can be done with it.

`test_kinds.py` holds each to what it says here, and `python -m tests.training.tuners.kinds` writes the table into
docs/training.md.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from training.layers.inserted import load_inserted

DOCS = Path(__file__).parents[3] / "docs" / "training.md"
ENGINES = ("pt", "vllm", "lmdeploy")
METHODS = ("sft", "dpo", "grpo")


def with_peft(base: Path, checkpoint: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), checkpoint)


def with_transformers(base: Path, checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def with_our_loader(base: Path, checkpoint: Path) -> Any:
    return load_inserted(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), checkpoint)


@dataclass(frozen=True, eq=False)
class Kind:
    choice: Mapping[str, Any]
    """The parameters that choose it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What it is tried with besides, on a model of 32 numbers a token."""
    compared: Mapping[str, Any] = field(default_factory=dict)
    """The same for methods that compare what is likely."""
    methods: tuple[str, ...] = METHODS
    """Those that take it; the others refuse it by name."""
    merges: bool = True
    served: Literal["adapter", "merged", "model", "no"] = "adapter"
    """As what an engine serves it: an adapter beside the base model, merged into that first, or a model of its own."""
    begins_as_base: bool = True
    """Whether the model says the same before the first step as without it."""
    alone: Callable[[Path, Path], Any] = with_peft
    """Loads what it has written without the training: (base model, checkpoint) -> model."""

    @property
    def name(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.choice.items())


def lora(**choice: Any) -> Kind:
    return Kind(choice or {"train_type": "lora"}, {"lora_rank": 4, "lora_dropout": 0.1})


def merged(choice: str | dict[str, Any], **settings: Any) -> Kind:
    """An adapter that is no LoRA."""
    return Kind({"train_type": choice} if isinstance(choice, str) else choice, settings, served="merged")


def whole(train_type: str, **settings: Any) -> Kind:
    """What makes a model."""
    given = {"learning_rate": 1e-3, **settings}
    return Kind({"train_type": train_type}, given, merges=False, served="model", alone=with_transformers)


def inserted(train_type: str, *, begins_as_base: bool = True, **settings: Any) -> Kind:
    """What puts modules of ours into the model."""
    return Kind(
        {"train_type": train_type},
        settings,
        methods=("sft", "dpo"),
        merges=False,
        served="no",
        begins_as_base=begins_as_base,
        alone=with_our_loader,
    )


KINDS = (
    lora(),
    lora(use_rslora=True),
    lora(lorap_lr_ratio=4),
    lora(init_weights="pissa"),
    lora(init_weights="pissa", use_rslora=True),
    lora(init_weights="orthogonal"),
    lora(init_weights="olora"),
    lora(init_weights="eva"),
    lora(init_weights="corda"),
    lora(init_weights="lora-ga"),
    Kind({"use_dora": True}, {"lora_rank": 4, "lora_dropout": 0.1}, served="merged"),
    Kind(
        {"train_type": "adalora"},
        {"adalora_init_r": 4, "adalora_target_r": 2, "adalora_tfinal": 1, "lora_dropout": 0.1},
        compared={"max_steps": 4, "adalora_orth_reg_weight": 0},
    ),
    merged("vera", vera_rank=16, vera_dropout=0.1),
    merged("boft", boft_dropout=0.1),
    merged("fourierft", fourier_n_frequency=50),
    merged("bone", lora_rank=4, lora_dropout=0.1),
    merged({"train_type": "bone", "init_weights": "bat"}, lora_rank=4, lora_dropout=0.1),
    merged("loha", lora_rank=4),
    merged("lokr", lora_rank=4),
    merged("ia3", learning_rate=0.1),
    merged("randlora", lora_rank=4, lora_dropout=0.1),
    merged("trainable_tokens", trainable_token_indices=[3, 17, 60, 70], learning_rate=0.1),
    Kind({"train_type": "longlora"}, {"lora_rank": 4, "lora_dropout": 0.1}, methods=("sft",), served="merged"),
    whole("full"),
    whole("llamapro", llamapro_num_new_blocks=2),
    inserted("adapter", adapter_length=8),
    inserted("reft", begins_as_base=False, reft_args={"dropout": 0.1, "act_fn": "gelu"}),
)

BEGIN, END = "<!-- Written by `python -m tests.training.tuners.kinds`. -->\n", "<!-- The end of the table. -->\n"


def table() -> str:
    """What each kind can do, as docs/training.md has it."""
    heads = ("trained as", *METHODS, "resumed", "merged", *ENGINES)
    rows = [" | ".join(heads), " | ".join("---" for _ in heads), *(" | ".join(_cells(kind)) for kind in KINDS)]
    return "\n".join(f"| {row} |" for row in rows) + "\n"


def _cells(kind: Kind) -> list[str]:
    name = ", ".join(f"`{name} {str(value).lower()}`" for name, value in kind.choice.items())
    methods = ["yes" if method in kind.methods else "no" for method in METHODS]
    merges = "yes" if kind.merges else "is a model" if kind.served == "model" else "no"
    return [name, *methods, "yes", merges, *[{"adapter": "yes"}.get(kind.served, kind.served)] * len(ENGINES)]


def page() -> str:
    """docs/training.md with the table as it is now."""
    return re.sub(
        f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", lambda _: f"\n{table()}\n", DOCS.read_text(), flags=re.DOTALL
    )


if __name__ == "__main__":
    DOCS.write_text(page())
