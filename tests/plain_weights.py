"""How many linear layers of this process hold plain weights at a moment."""

import gc

from torch import Tensor, nn


def plain_layers() -> int:
    """Those with numbers in memory, and not integers, nor what only has a shape."""
    layers = [each for each in gc.get_objects() if type(each) is nn.Linear]
    return sum(_is_plain(layer._parameters.get("weight")) for layer in layers)


def _is_plain(weight: Tensor | None) -> bool:
    return (
        type(weight) is nn.Parameter
        and weight.is_floating_point()
        and weight.device.type == "cpu"
        and weight.untyped_storage().nbytes() >= weight.nbytes
    )
