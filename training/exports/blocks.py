"""A model's blocks of layers in turn, each with what reaches it: so that one block's weights at a time are quantised,
by what the blocks before it, which are quantised already, make of texts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.errors import UnsupportedModel
from training.exports.calibration import Batch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Inputs:
    """What a linear layer was given: `count` vectors x of its inputs."""

    gram: "Tensor"
    """Sum of x xᵀ: (inputs, inputs), float32."""
    magnitudes: "Tensor"
    """Sum of |x|: (inputs,), float32."""
    count: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    path: str
    """Its path in the model."""
    module: Any
    masks: Sequence["Tensor"]
    """Of each batch which of its (samples * tokens,) are no padding."""
    hidden: Sequence["Tensor"]
    """What reaches it: (samples, tokens, hidden_size) of each batch."""
    settings: Sequence[Mapping[str, Any]]
    """Its other arguments, for each batch."""

    def forward(self, tell: Callable[["Tensor"], None]) -> list["Tensor"]:
        """What it makes of each batch, whose mask is told before."""
        passed = []
        for mask, states, given in zip(self.masks, self.hidden, self.settings, strict=True):
            tell(mask)
            found = self.module(states, **given)
            passed.append(found[0] if isinstance(found, tuple) else found)
        return passed

    def linears(self) -> dict[str, Any]:
        """Its linear layers, by their paths in the block."""
        import torch

        return {path: each for path, each in self.module.named_modules() if type(each) is torch.nn.Linear}

    def inputs(self) -> dict[str, Inputs]:
        """What each linear layer is given by all batches."""
        import torch

        found: dict[str, Inputs] = {}
        mask: list[Tensor] = []

        def listen(path: str) -> Callable[[Any, tuple[Any, ...]], None]:
            def hook(_: Any, given: tuple[Any, ...]) -> None:
                x = given[0].detach().reshape(-1, given[0].shape[-1])[mask[-1]].float()
                if path not in found:
                    size = x.shape[-1]
                    found[path] = Inputs(x.new_zeros(size, size), x.new_zeros(size))
                found[path].gram.addmm_(x.T, x)
                found[path].magnitudes += x.abs().sum(0)
                found[path].count += len(x)

            return hook

        hooks = [layer.register_forward_pre_hook(listen(path)) for path, layer in self.linears().items()]
        try:
            with torch.inference_mode():
                self.forward(mask.append)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def walk(model: Any, batches: Sequence[Batch]) -> Iterator[Block]:
    """Each block in turn. What it passes on to the next is computed once whoever asked has changed its weights.

    Raises UnsupportedModel.
    """
    import torch

    path, blocks = blocks_of(model)
    hidden, settings = _given(model, blocks, batches)
    masks = [batch.mask.bool().flatten().to(model.device) for batch in batches]
    for index, module in enumerate(blocks):
        block = Block(f"{path}.{index}", module, masks, hidden, [given[index] for given in settings])
        yield block
        with torch.inference_mode():
            hidden = block.forward(lambda mask: None)


def blocks_of(model: Any) -> tuple[str, Any]:
    """The list of the model's blocks and its path: the one that holds the most linear layers.

    Raises UnsupportedModel where there is none, or most of the weights are in no linear layer.
    """
    import torch

    def linears(module: Any) -> int:
        return sum(type(each) is torch.nn.Linear for each in module.modules())

    lists = [(path, each) for path, each in model.named_modules() if isinstance(each, torch.nn.ModuleList)]
    path, blocks = max(lists, key=lambda each: linears(each[1]), default=("", None))
    kind = model.config.model_type
    if blocks is None or not linears(blocks):
        raise UnsupportedModel(f"models of type {kind} have no blocks of linear layers to quantise", param="model")
    if any(parameter.dim() > 2 for parameter in blocks.parameters()):
        raise UnsupportedModel(f"models of type {kind} are mixtures of experts, which are not quantised", param="model")
    return path, blocks


def _given(model: Any, blocks: Any, batches: Sequence[Batch]) -> tuple[list["Tensor"], list[list[Mapping[str, Any]]]]:
    """For each batch what the first block is given, and which other arguments each block is."""
    import torch

    first: list[Tensor] = []
    settings: list[list[Mapping[str, Any]]] = []

    def listen(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if module is blocks[0]:
            first.append(given[0] if given else named["hidden_states"])
        settings[-1].append({name: value for name, value in named.items() if name != "hidden_states"})

    hooks = [block.register_forward_pre_hook(listen, with_kwargs=True) for block in blocks]
    try:
        with torch.inference_mode():
            for batch in batches:
                settings.append([])
                ids, mask = batch.input_ids.to(model.device), batch.mask.to(model.device)
                model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return first, settings
