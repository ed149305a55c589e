"""Linear layers whose weights another library keeps quantised. They stay what they are, and compute for themselves."""

from torch import nn

CLASSES = ("Linear4bit", "Linear8bitLt", "HQQLinear")
"""Of bitsandbytes and HQQ. torchao's are plain layers with weights of its own class."""


def is_quantized(module: nn.Module) -> bool:
    """Whether it is such a layer."""
    if type(module).__name__ in CLASSES:
        return True
    return type(module) is nn.Linear and type(module.weight) is not nn.Parameter


def rounds_by_batch(model: nn.Module) -> bool:
    """Whether a layer rounds what it gets, and otherwise in another batch: LLM.int8 (Dettmers et al. 2022,
    arXiv:2208.07339) does, which computes the features apart that are large in any row of a batch."""
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())
