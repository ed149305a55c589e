"""Batched LoRA: every row of a step computes with its own adapter, in one forward pass with all others.

delta y = scale * B A x (Hu et al. 2021, arXiv:2106.09685). Every layer that some adapter has adapted has slots for the
matrices of those that take part; a row's slot says which adapter it uses. `low_rank.py` has the two ways to compute it:
the C kernel, on CPUs in float32 and bfloat16, and plain torch, anywhere.

A layer that no adapter has ever adapted is not touched, and where a step has no adapter, none of this is computed.
"""

import ctypes
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from engines.adapters.pins import max_pinned
from engines.capabilities import AdapterSupport
from engines.checkpoint.structure import expert_layers
from engines.pt.layers.linear import DotLinear, PackedLinear, WideningLinear, scale_of
from engines.pt.layers.pages import Pages, room
from engines.pt.layers.quantized import is_quantized
from engines.pt.layers.quantized_linear import QuantizedLinear
from engines.pt.lora.low_rank import KERNELS, Kernel, Matrices, Rows, Stack, Updates, rank_of
from engines.pt.lora.weights import AdapterWeights

log = logging.getLogger(__name__)

LINEARS = (nn.Linear, PackedLinear, WideningLinear, DotLinear, QuantizedLinear, Conv1D)


@dataclass(frozen=True, slots=True)
class Calls:
    """How a forward pass called the layers that could be adapted."""

    rows: dict[str, set[int]]
    """How many rows each got; a layer that was not called has none."""
    groups: list[list[str]]
    """Layers that were called one after another with the same input."""


@contextmanager
def watching_calls(model: nn.Module) -> Iterator[Calls]:
    """While it lasts, note how the layers are called that could be adapted."""
    calls = Calls({}, [])
    last: Tensor | None = None

    def note(path: str, x: Tensor, width: int) -> None:
        nonlocal last
        if not calls.rows[path]:
            if x is not last:
                calls.groups.append([])
            calls.groups[-1].append(path)
            last = x
        calls.rows[path].add(x.numel() // width)

    def watch(path: str, module: nn.Module, width: int) -> RemovableHandle:
        calls.rows[path] = set()
        return module.register_forward_pre_hook(lambda _, args: note(path, args[0], width))

    handles = [
        watch(path, module, _linear_shape(module)[0] if _is_linear(module) else 1)
        for path, module in model.named_modules()
        if _is_linear(module) or scale_of(module) is not None
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Step:
    """The rows of the running step; shared by all layers. None: no row uses an adapter."""

    def __init__(self) -> None:
        self.tokens: Rows | None = None
        self.wanted: Rows | None = None  # those that the output head gets

    def rows(self, *, head: bool) -> Rows | None:
        return self.wanted if head else self.tokens


class LoraSlots:
    """The adapter slots of a model, and the rows that use them."""

    def __init__(
        self,
        model: nn.Module,
        calls: Calls,
        *,
        num_tokens: int,
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        library: ctypes.CDLL | None,
    ) -> None:
        """`calls` are those of a forward pass of `num_tokens`; layers that got other rows cannot be adapted: experts
        get the tokens that are routed to them, a tower for images none. `library` has the C kernel; None: plain torch.
        """
        self.num_slots = num_slots
        self._model = model
        self._dtype = dtype
        self._library = library if dtype in KERNELS else None
        self._last: nn.Module = model.get_output_embeddings() or model.score
        self._step = Step()
        self._layers: dict[str, LoraLinear | LoraEmbedding] = {}
        self.writes = 0
        """How often something was written to a slot."""
        self.ranks = (ctypes.c_int32 * num_slots)()
        """The highest in any linear layer, of each slot."""
        self.heads: dict[int, Tensor] = {}
        """Slot -> head (labels, hidden_size) of the adapter that lies there, where it classifies."""
        modules = {path: m for path, m in model.named_modules() if calls.rows.get(path) == {num_tokens}}
        self._head = next((path for path, m in modules.items() if m is model.get_output_embeddings()), "")
        entrance = next((path for path, m in modules.items() if m is model.get_input_embeddings()), "")
        linears = {path: _linear_shape(m) for path, m in modules.items() if _is_linear(m)}
        embeddings = {path: tuple(m.weight.shape) for path, m in modules.items() if scale_of(m) is not None}
        self.support = AdapterSupport(
            max_rank=max_rank,
            linears=linears,
            embeddings=embeddings,
            replaceable=frozenset({self._head, entrance} & (linears.keys() | embeddings.keys())),
            head_inputs=_linear_shape(self._last)[0],
            padding=model.config.get_text_config().pad_token_id,
            experts=expert_layers(model),
            max_pinned=max_pinned(num_slots),
        )
        self._groups = {path: group for group in self._group(calls.groups) for path in group.paths}

    def _group(self, called: list[list[str]]) -> Iterator["Group"]:
        """The groups of all linear layers that the kernel computes. The head is alone: its rows are others."""
        if self._library is None:
            return
        alone = [self._head]
        for paths in (*called, alone):
            mine = [p for p in paths if p in self.support.linears and (p != self._head or paths is alone)]
            mine = [path for path in mine if _device(self._model.get_submodule(path)).type == "cpu"]
            if mine:
                inputs = self.support.linears[mine[0]][0]
                outputs = [self.support.linears[path][1] for path in mine]
                first = self._model.get_submodule(mine[0])
                dtype = torch.float32 if type(first) is WideningLinear else self._dtype
                wide = type(first) is DotLinear or (type(first) is QuantizedLinear and first.wide)
                yield Group(mine, Kernel(self.num_slots, inputs, outputs, dtype, self._library, wide=wide))

    @property
    def exact(self) -> torch.dtype:
        """The type of a linear layer's matrices in which it loses least of them."""
        return self._dtype if self._library is None else torch.float32

    def laid_out(self, weights: AdapterWeights) -> AdapterWeights:
        """An adapter whose matrices lie side by side as the kernel reads them, in large pages: whoever computes with
        many reads them from memory. Raises ValueError where they do not fit."""
        linears = dict(weights.linears)
        groups = dict.fromkeys(group for path, group in self._groups.items() if path in linears)
        matrices = {group: {path: linears[path] for path in group.paths if path in linears} for group in groups}
        pages = Pages(sum(group.room(own) for group, own in matrices.items()))
        for group, own in matrices.items():
            linears |= group.laid_out(own, pages)
        return replace(weights, linears=linears)

    def write(self, slot: int, weights: AdapterWeights) -> None:
        """Put an adapter into a slot, in place of what is there."""
        matrices = weights.linears | weights.embeddings
        rank = max((rank_of(a) for a, _ in weights.linears.values()), default=0)
        self.ranks[slot] = max(self.ranks[slot], rank)  # where this fails half-way, what was there is still there
        self.writes += 1
        with torch.inference_mode():
            for path in matrices.keys() | weights.saved.keys():
                if path not in self._layers:
                    self._layers[path] = self._adapt(path)
            for path, layer in self._layers.items():
                layer.write(slot, matrices.get(path), weights.saved.get(path))
            self.ranks[slot] = rank
            self.heads.pop(slot, None)
            if weights.head is not None:
                self.heads[slot] = weights.head.to(_device(self._last))

    def clear(self, slot: int) -> None:
        """Leave nothing in a slot."""
        self.write(slot, AdapterWeights({}, {}, {}))

    def _adapt(self, path: str) -> "LoraLinear | LoraEmbedding":
        """Set a layer with slots in the place of a layer of the model."""
        module = self._model.get_submodule(path)
        layer: LoraLinear | LoraEmbedding
        if path in self.support.linears:
            head = path == self._head
            layer = LoraLinear(path, module, self._step, head, self.num_slots, self._groups.get(path))
        else:
            layer = LoraEmbedding(module, self._step)
        parent, _, name = path.rpartition(".")
        setattr(self._model.get_submodule(parent), name, layer)
        return layer

    def updates(self, paths: list[str]) -> Updates | None:
        """The updates of linear layers that get the same input, as the kernel takes them; None where these are not the
        layers of one group."""
        group = self._groups.get(paths[0])
        return group.updates if group is not None and group.paths == paths else None

    @property
    def rows(self) -> Rows | None:
        """The rows of the running step; None: no row uses an adapter."""
        return self._step.tokens

    @contextmanager
    def using(self, tokens: Tensor | None, wanted: Tensor | None) -> Iterator[None]:
        """Set the slots (int32, -1: none) of a forward pass's tokens and wanted rows; None: no adapters."""
        if tokens is not None and wanted is not None:
            self._step.tokens, self._step.wanted = Rows(tokens, self._library), Rows(wanted, self._library)
        try:
            yield
        finally:
            self._step.tokens = self._step.wanted = None


class Group:
    """Layers that get the same input, as query, key and value do: the first of them that is called computes all."""

    def __init__(self, paths: list[str], kernel: Kernel) -> None:
        self.paths = paths
        self._kernel = kernel
        self._layers: dict[int, LoraLinear] = {}  # those that are adapted, by their place in `paths`
        self._x: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}  # for `_x`, of layers that are still to be called

    @property
    def updates(self) -> Updates:
        return self._kernel.updates

    def room(self, matrices: dict[str, Matrices]) -> int:
        """Bytes of pages that these take, laid out."""
        shapes = self._kernel.shapes(self._by_number(matrices))
        return sum(room(math.prod(shape) * self._kernel.dtype.itemsize) for shape in shapes)

    def laid_out(self, matrices: dict[str, Matrices], pages: Pages) -> dict[str, Matrices]:
        """All A and then all B^T of the group, in the order in which they are read."""
        numbers = self._by_number(matrices)
        rooms = [pages.zeros(shape, self._kernel.dtype) for shape in self._kernel.shapes(numbers)]
        done = self._kernel.lay_out(numbers, rooms)
        return {self.paths[number]: pair for number, pair in done.items()}

    def _by_number(self, matrices: dict[str, Matrices]) -> dict[int, Matrices]:
        return {number: matrices[path] for number, path in enumerate(self.paths) if path in matrices}

    def write(self, layer: "LoraLinear", slot: int, matrices: Matrices | None) -> None:
        self._kernel.write(layer.place, slot, matrices)
        self._layers[layer.place] = layer

    def output(self, layer: "LoraLinear", x: Tensor, rows: Rows) -> Tensor:
        """The layer's output, updates and all."""
        if x is not self._x or layer.place not in self._outputs:
            outputs = {place: layer.without_updates(x, rows) for place, layer in self._layers.items()}
            self._kernel.add(x, outputs, rows)
            self._x, self._outputs = x, outputs
        y = self._outputs.pop(layer.place)
        if not self._outputs:
            self._x = None
        return y


class LoraLinear(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A linear layer whose rows may each add their own adapter's update, or go through their adapter's own weight."""

    def __init__(self, path: str, base: nn.Module, step: Step, head: bool, num_slots: int, group: Group | None) -> None:
        """`group` None: updates are computed by plain torch, for this layer alone."""
        super().__init__()
        self.base = base
        self.in_features, self.out_features = _linear_shape(base)
        self._step, self._head, self._group = step, head, group
        self.place = 0 if group is None else group.paths.index(path)
        self._num_slots = num_slots
        self._stack: Stack | None = None
        self._saved: dict[int, Tensor] = {}

    def write(self, slot: int, matrices: Matrices | None, saved: Tensor | None) -> None:
        if self._group is not None:
            self._group.write(self, slot, matrices)
        elif matrices is not None and self._stack is None:
            like = torch.empty(0, dtype=matrices[0].dtype, device=_device(self.base))
            self._stack = Stack(self._num_slots, self.in_features, self.out_features, like)
        if self._stack is not None:
            self._stack.write(slot, matrices)
        self._saved.pop(slot, None)
        if saved is not None:
            self._saved[slot] = saved.to(_device(self.base))

    def forward(self, x: Tensor) -> Tensor:
        rows = self._step.rows(head=self._head)
        if rows is None:
            return self.base(x)
        if self._group is not None:
            return self._group.output(self, x, rows)
        y = self.without_updates(x, rows)
        if self._stack is not None:
            # Where the model is spread over devices, y is on the layer's own; x may come from another.
            x = x.reshape(-1, self.in_features).to(self._stack.a)
            self._stack.add(x, y.view(-1, self.out_features), rows)
        return y

    def without_updates(self, x: Tensor, rows: Rows) -> Tensor:
        """What the base gives, or for some rows their adapter's own weight."""
        if x.numel() != len(rows) * self.in_features:
            raise RuntimeError(f"a layer got {x.numel() // self.in_features} rows in a step of {len(rows)}")
        y: Tensor = self.base(x)
        for slot, weight in self._saved.items():
            own = (rows.slots.to(y.device) == slot).nonzero()[:, 0]
            inputs = x.reshape(-1, self.in_features).to(weight)[own]
            bias = None if self.base.bias is None else self.base.bias.to(weight)
            y.view(-1, self.out_features)[own] = F.linear(inputs, weight, bias).to(y.dtype)
        return y


class LoraEmbedding(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """An embedding whose ids may each be looked up in their own adapter, too, or in their adapter's own table. What is
    found there is scaled as the model's own rows are."""

    def __init__(self, base: nn.Module, step: Step) -> None:
        super().__init__()
        self.base = base
        self.weight = base.weight
        self.scale = scale_of(base) or 1.0
        self._step = step
        self._matrices: dict[int, Matrices] = {}
        self._saved: dict[int, Tensor] = {}

    def write(self, slot: int, matrices: tuple[Tensor, Tensor] | None, saved: Tensor | None) -> None:
        self._matrices.pop(slot, None)
        self._saved.pop(slot, None)
        if matrices is not None:
            a, b = matrices
            self._matrices[slot] = (a.to(self.weight.device), b.to(self.weight.device))
        if saved is not None:
            self._saved[slot] = saved.to(self.weight.device)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.base(ids)
        rows = self._step.rows(head=False)
        if rows is None:
            return y
        results, flat, slots = y.view(-1, y.shape[-1]), ids.reshape(-1).to(y.device), rows.slots.to(y.device)
        for slot, table in self._saved.items():
            own = (slots == slot).nonzero()[:, 0]
            results[own] = table[flat[own]].to(y.dtype) * self.scale
        for slot, (a, b) in self._matrices.items():
            own = (slots == slot).nonzero()[:, 0]
            results[own] += a[flat[own]] @ b * self.scale
        return y


def _is_linear(module: nn.Module) -> bool:
    return type(module) in LINEARS or is_quantized(module)


def _linear_shape(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return (int(module.weight.shape[0]), int(module.weight.shape[1]))
    return (int(module.in_features), int(module.out_features))


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
