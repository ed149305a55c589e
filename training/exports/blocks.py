"""A model's blocks of layers in turn, each with what reaches it: so that one block's weights at a time are quantised,
by what the blocks before it, which are quantised already, make of texts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engines.errors import UnsupportedModel
from training.exports.calibration import Batch

if TYPE_CHECKING:
    from torch import Tensor


TOGETHER = 512
"""Vectors whose products are summed at once."""


@dataclass(slots=True)
class Inputs:
    """What a linear layer was given: `count` vectors x of its inputs."""

    gram: "Tensor"
    """Sum of x xᵀ: (inputs, inputs), float32."""
    magnitudes: "Tensor"
    """Sum of |x|: (inputs,), float32."""
    count: int = 0
    _waiting: list["Tensor"] = field(default_factory=list)

    def add(self, x: "Tensor") -> None:
        """Vectors (count, inputs), which are counted once there are enough of them, or in `finish`."""
        self._waiting.append(x)
        if sum(map(len, self._waiting)) >= TOGETHER:
            self.finish()

    def finish(self) -> None:
        import torch

        if not self._waiting:
            return
        x = torch.cat(self._waiting)
        self._waiting.clear()
        self.magnitudes += x.abs().sum(0, dtype=torch.float32)
        self.count += len(x)
        if x.dtype == torch.bfloat16:  # exact but for one rounding of each sum, and several times faster
            self.gram += x.T @ x
        else:
            x = x.float()
            self.gram.addmm_(x.T, x)

    def divided(self, scale: "Tensor") -> "Inputs":
        """What the inputs were if they were divided by `scale` (inputs,)."""
        return Inputs(self.gram / (scale[:, None] * scale), self.magnitudes / scale, self.count)


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
        """What each linear layer is given by all batches. Layers that are given the same have the same `Inputs`."""
        import torch

        found: dict[str, Inputs] = {}
        mask: list[Tensor] = []
        last: list[tuple[Tensor, Inputs]] = []

        def listen(path: str) -> Callable[[Any, tuple[Any, ...]], None]:
            def hook(_: Any, given: tuple[Any, ...]) -> None:
                if last and last[-1][0] is given[0]:
                    found[path] = last[-1][1]
                    return
                x = given[0].detach().reshape(-1, given[0].shape[-1])[mask[-1]]
                if path not in found:
                    size = x.shape[-1]
                    found[path] = Inputs(*(torch.zeros(shape, device=x.device) for shape in ((size, size), size)))
                found[path].add(x)
                last[:] = [(given[0], found[path])]

            return hook

        hooks = [layer.register_forward_pre_hook(listen(path)) for path, layer in self.linears().items()]
        try:
            with torch.inference_mode():
                self.forward(mask.append)
                for each in found.values():
                    each.finish()
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
    """For each batch what the first block is given, and which other arguments each block is. The first block alone is
    computed: the others pass on what it has made."""
    import torch

    first: list[Tensor] = []
    settings: list[list[Mapping[str, Any]]] = []
    made: list[Any] = []

    def listen(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if module is blocks[0]:
            first.append(given[0] if given else named["hidden_states"])
        settings[-1].append({name: value for name, value in named.items() if name != "hidden_states"})

    hooks = [block.register_forward_pre_hook(listen, with_kwargs=True) for block in blocks]
    hooks.append(blocks[0].register_forward_hook(lambda *told: made.append(told[-1])))
    for block in blocks[1:]:
        block.forward = lambda *_, **__: made[-1]
    try:
        with torch.inference_mode():
            for batch in batches:
                settings.append([])
                ids, mask = batch.input_ids.to(model.device), batch.mask.to(model.device)
                model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
                made.clear()
    finally:
        for hook in hooks:
            hook.remove()
        for block in blocks[1:]:
            del block.forward
    return first, settings
