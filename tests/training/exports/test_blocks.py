"""What each linear layer of a model is given by texts, block after block."""

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.engines.pt.tiny import CONFIGS
from training.exports import blocks
from training.exports.calibration import Batch

TEXTS = ([3, 40, 5, 60, 7], [9, 10, 110])


def given(model: torch.nn.Module, path: str, texts: list[list[int]]) -> Tensor:
    """All vectors that a layer is given by texts, each of them alone."""
    seen: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, -2)))
    with torch.inference_mode():
        for text in texts:
            model(torch.tensor([text]))
    hook.remove()
    return torch.cat(seen)


def test_the_products_of_all_vectors_but_those_of_padding_are_summed() -> None:
    torch.manual_seed(0)
    for name in ("llama", "gpt-neox"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
        batch = Batch(torch.tensor([TEXTS[0], [*TEXTS[1], 0, 0]]), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]))
        for block in blocks.walk(model, [batch, batch]):
            for path, inputs in block.inputs().items():
                x = given(model, f"{block.path}.{path}", list(TEXTS) * 2)
                torch.testing.assert_close(inputs.gram, x.T @ x, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(inputs.magnitudes, x.abs().sum(0), rtol=1e-4, atol=1e-4)
                assert inputs.count == len(x)


def test_layers_that_are_given_the_same_share_what_is_known_of_it() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    batch = Batch(torch.tensor([TEXTS[0]]), torch.ones(1, 5, dtype=torch.int64))
    inputs = next(blocks.walk(model, [batch])).inputs()
    for alike in (("q", "k", "v"), ("gate", "up")):
        first, *others = (each for path, each in inputs.items() if path.split(".")[1].removesuffix("_proj") in alike)
        assert others and all(each is first for each in others)
    assert len({id(each) for each in inputs.values()}) == 4
