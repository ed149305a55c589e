"""Libraries that a training may ask for beside those that every one needs."""

from importlib.util import find_spec

from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.refusals import reporters

UNSLOTH = (
    "Unsloth changes transformers (5.17 at most) and TRL (1.15 at most), which are newer here, and needs a GPU. It has "
    "an environment of its own, which python -m venv unsloth && unsloth/bin/pip install unsloth makes, and trainings "
    "of this program do not run in it: choose peft"
)
LIGER = "it needs the package liger-kernel, which is not installed here: pip install liger-kernel, and a GPU"


def refusals(params: SftParams) -> list[Refusal]:
    """What could not run here, as far as it can be told without loading anything."""
    found = reporters.refusals(params)
    if params.tuner_backend == "unsloth":
        found.append(("tuner_backend", UNSLOTH))
    if params.use_liger and find_spec("liger_kernel") is None:
        found.append(("use_liger", LIGER))
    return found
