"""Batched LoRA: every row of a step computes with its own adapter, in one forward pass with all others.

delta y = scale * B A x (Hu et al. 2021, arXiv:2106.09685). The matrices of all adapters that take part lie stacked, one
slot each, in every layer that some adapter has adapted; a row's slot says which it uses. Two ways to compute it:

- the C kernel, on CPUs in float32: each row reads its own adapter's matrices, in their own rank
- plain torch, anywhere: all rows times all slots, what is not a row's own masked out, in two matrix products

A layer that no adapter has ever adapted is not touched, and where a step has no adapter, none of this is computed.
"""

import ctypes
import logging
import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from engines.adapters.pins import max_pinned
from engines.adapters.spec import WEIGHTS, AdapterSpec, LoraModule
from engines.capabilities import AdapterSupport
from engines.errors import InvalidAdapter
from engines.pt.linear import PackedLinear, WideningEmbedding, WideningLinear

log = logging.getLogger(__name__)

LINEARS = (nn.Linear, PackedLinear, WideningLinear, Conv1D)
EMBEDDINGS = (nn.Embedding, WideningEmbedding)


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One adapter in host memory, in the form in which it goes into a slot. Modules by their path in the model."""

    linears: dict[str, tuple[Tensor, Tensor]]  # A (rank, in_features), scaled B^T (rank, out_features)
    embeddings: dict[str, tuple[Tensor, Tensor]]  # A^T (num_embeddings, rank), scaled B^T (rank, embedding_dim)
    saved: dict[str, Tensor]  # in place of the module's own weight


def read_weights(spec: AdapterSpec, dtype: torch.dtype) -> AdapterWeights:
    """Read a checked adapter from its folder. Raises InvalidAdapter where a value is not finite or the file is gone."""
    try:
        with safe_open(spec.folder / WEIGHTS, framework="pt") as file:

            def read(name: str, scale: float = 1.0) -> Tensor:
                # The product is in memory of its own, where the file's tensor would be read when it is used.
                tensor: Tensor = (file.get_tensor(name).float() * scale).to(dtype)
                if not math.isfinite(tensor.sum(dtype=torch.float64)):  # in double, finite values have a finite sum
                    message = f"{name} has values that are not finite numbers in {str(dtype).removeprefix('torch.')}"
                    raise InvalidAdapter(message, param=name)
                return tensor

            def up(module: LoraModule) -> Tensor:
                return read(module.b, module.scale).T.contiguous()

            return AdapterWeights(
                linears={path: (read(m.a), up(m)) for path, m in spec.linears.items()},
                embeddings={path: (read(m.a).T.contiguous(), up(m)) for path, m in spec.embeddings.items()},
                saved={path: read(name) for path, name in spec.saved.items()},
            )
    except (OSError, SafetensorError) as error:
        log.warning("%s cannot be read: %s", spec.folder / WEIGHTS, error)
        raise InvalidAdapter(f"{WEIGHTS} cannot be read", param=WEIGHTS) from error


@contextmanager
def counting_rows(model: nn.Module) -> Iterator[dict[str, set[int]]]:
    """While it lasts, note how many rows each layer that could be adapted gets. A layer that is not called has none."""
    counts: dict[str, set[int]] = {}

    def watch(path: str, module: nn.Module, width: int) -> RemovableHandle:
        counts[path] = set()
        return module.register_forward_pre_hook(lambda _, args: counts[path].add(args[0].numel() // width))

    handles = [
        watch(path, module, _linear_shape(module)[0] if type(module) in LINEARS else 1)
        for path, module in model.named_modules()
        if type(module) in LINEARS + EMBEDDINGS
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


class Rows:
    """The slots that the rows of the running step use; shared by all layers. None: no row uses any."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.tokens: Tensor | None = None  # (tokens,) int32, -1: the base model
        self.wanted: Tensor | None = None  # (wanted rows,) int32, for the output head

    def of(self, *, head: bool) -> Tensor | None:
        return self.wanted if head else self.tokens


class LoraSlots:
    """The adapter slots of a model, and the rows that use them."""

    def __init__(
        self,
        model: nn.Module,
        layers: AbstractSet[str],
        *,
        num_slots: int,
        max_rank: int,
        library: ctypes.CDLL | None,
    ) -> None:
        """`layers`: the paths of those that get a row for each token. `library` has the C kernel; None: plain torch."""
        self.num_slots = num_slots
        self._model = model
        self._library = library
        self._rows = Rows(num_slots)
        self._layers: dict[str, LoraLinear | LoraEmbedding] = {}
        modules = {path: module for path, module in model.named_modules() if path in layers}
        self._head = next((path for path, m in modules.items() if m is model.get_output_embeddings()), "")
        entrance = next((path for path, m in modules.items() if m is model.get_input_embeddings()), "")
        linears = {path: _linear_shape(m) for path, m in modules.items() if type(m) in LINEARS}
        embeddings = {path: tuple(m.weight.shape) for path, m in modules.items() if type(m) in EMBEDDINGS}
        self.support = AdapterSupport(
            max_rank=max_rank,
            linears=linears,
            embeddings=embeddings,
            replaceable=frozenset({self._head, entrance} & (linears.keys() | embeddings.keys())),
            max_pinned=max_pinned(num_slots),
        )

    def write(self, slot: int, weights: AdapterWeights) -> None:
        """Put an adapter into a slot, in place of what is there."""
        matrices = weights.linears | weights.embeddings
        with torch.inference_mode():
            for path in matrices.keys() | weights.saved.keys():
                if path not in self._layers:
                    self._layers[path] = self._adapt(path)
            for path, layer in self._layers.items():
                layer.write(slot, matrices.get(path), weights.saved.get(path))

    def clear(self, slot: int) -> None:
        """Leave nothing in a slot."""
        self.write(slot, AdapterWeights({}, {}, {}))

    def _adapt(self, path: str) -> "LoraLinear | LoraEmbedding":
        """Set a layer with slots in the place of a layer of the model."""
        module = self._model.get_submodule(path)
        layer: LoraLinear | LoraEmbedding
        if path in self.support.linears:
            layer = LoraLinear(module, self.support.linears[path], self._rows, path == self._head, self._library)
        else:
            layer = LoraEmbedding(module, self._rows)
        parent, _, name = path.rpartition(".")
        setattr(self._model.get_submodule(parent), name, layer)
        return layer

    @contextmanager
    def using(self, tokens: Tensor | None, wanted: Tensor | None) -> Iterator[None]:
        """Set the slots (int32, -1: none) of a forward pass's tokens and wanted rows; None: no adapters."""
        self._rows.tokens, self._rows.wanted = tokens, wanted
        try:
            yield
        finally:
            self._rows.tokens = self._rows.wanted = None


class Stack:
    """A and B of every slot for one layer: (slots, rank, in) and (slots, rank, out), rank being the highest so far."""

    def __init__(self, num_slots: int, inputs: int, outputs: int, like: Tensor) -> None:
        self.a = like.new_zeros(num_slots, 0, inputs)
        self.b = like.new_zeros(num_slots, 0, outputs)
        self.ranks = torch.zeros(num_slots, dtype=torch.int32)  # on the CPU, for the kernel

    def write(self, slot: int, matrices: tuple[Tensor, Tensor] | None) -> None:
        rank = 0 if matrices is None else matrices[0].shape[0]
        if rank > self.a.shape[1]:
            more = (0, 0, 0, rank - self.a.shape[1])
            self.a, self.b = F.pad(self.a, more), F.pad(self.b, more)
        before = int(self.ranks[slot])
        self.ranks[slot] = max(rank, before)  # beyond it are zeros, also where this fails half-way
        for stack in (self.a, self.b):
            stack[slot, rank:before] = 0
        if matrices is not None:
            self.a[slot, :rank].copy_(matrices[0])
            self.b[slot, :rank].copy_(matrices[1])
        self.ranks[slot] = rank

    def add(self, x: Tensor, y: Tensor, slots: Tensor) -> None:
        """y (rows, out) += B A x of each row's slot; x (rows, in)."""
        foreign = slots[:, None] != torch.arange(len(self.a), device=slots.device)  # (rows, slots)
        low = (x @ self.a.flatten(0, 1).T).view(len(x), len(self.a), -1)
        # Not multiplied by zeros: what overflows in another's matrices must not become a NaN here.
        y.addmm_(low.masked_fill_(foreign[:, :, None], 0).flatten(1), self.b.flatten(0, 1))


class LoraLinear(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A linear layer whose rows may each add their own adapter's update, or go through their adapter's own weight."""

    def __init__(
        self, base: nn.Module, shape: tuple[int, int], rows: Rows, head: bool, library: ctypes.CDLL | None
    ) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = shape
        self._rows, self._head, self._library = rows, head, library
        self._stack: Stack | None = None
        self._saved: dict[int, Tensor] = {}

    def write(self, slot: int, matrices: tuple[Tensor, Tensor] | None, saved: Tensor | None) -> None:
        if matrices is not None and self._stack is None:
            device = _device(self.base)
            like = torch.empty(0, dtype=matrices[0].dtype, device=device)
            self._stack = Stack(self._rows.num_slots, self.in_features, self.out_features, like)
        if self._stack is not None:
            self._stack.write(slot, matrices)
        self._saved.pop(slot, None)
        if saved is not None:
            self._saved[slot] = saved.to(_device(self.base))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        slots = self._rows.of(head=self._head)
        if slots is None:
            return y
        # Where the model is spread over devices, y is on the layer's own; x may come from another.
        rows, results = x.reshape(-1, self.in_features).to(y.device), y.view(-1, self.out_features)
        slots = slots.to(y.device)
        if len(rows) != len(slots):
            raise RuntimeError(f"a layer got {len(rows)} rows in a step of {len(slots)}")
        for slot, weight in self._saved.items():
            own = (slots == slot).nonzero()[:, 0]
            results[own] = F.linear(rows[own], weight, self.base.bias)
        if self._stack is not None:
            self._add(self._stack, rows, results, slots)
        return y

    def _add(self, stack: Stack, x: Tensor, y: Tensor, slots: Tensor) -> None:
        if self._library is None or x.device.type != "cpu" or x.dtype is not torch.float32:
            stack.add(x, y, slots)
            return
        x = x.contiguous()
        pointers = [tensor.data_ptr() for tensor in (x, y, stack.a, stack.b, stack.ranks, slots)]
        if self._library.lora_add(*pointers, len(x), self.in_features, self.out_features, stack.a.shape[1]):
            raise MemoryError("no memory for adapters")


class LoraEmbedding(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """An embedding whose ids may each be looked up in their own adapter, too, or in their adapter's own table."""

    def __init__(self, base: nn.Module, rows: Rows) -> None:
        super().__init__()
        self.base = base
        self.weight = base.weight
        self._rows = rows
        self._matrices: dict[int, tuple[Tensor, Tensor]] = {}
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
        slots = self._rows.of(head=False)
        if slots is None:
            return y
        results, flat, slots = y.view(-1, y.shape[-1]), ids.reshape(-1).to(y.device), slots.to(y.device)
        for slot, table in self._saved.items():
            own = (slots == slot).nonzero()[:, 0]
            results[own] = table[flat[own]]
        for slot, (a, b) in self._matrices.items():
            own = (slots == slot).nonzero()[:, 0]
            results[own] += a[flat[own]] @ b
        return y


def _linear_shape(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return (int(module.weight.shape[0]), int(module.weight.shape[1]))
    return (int(module.in_features), int(module.out_features))


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
