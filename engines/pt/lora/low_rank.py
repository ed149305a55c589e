"""B A x for the rows of a step, each with its own adapter's matrices, in two ways:

- `Kernel`: the C kernel, on CPUs in float32 and bfloat16. Each row reads its own adapter's matrices, in their own rank;
  layers that get the same input are computed in one call
- `Stack`: plain torch, anywhere. All rows times all slots of a layer, what is not a row's own masked out
"""

import ctypes
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

KERNELS = {torch.float32: "lora_add_float", torch.bfloat16: "lora_add_bf16"}
MIXED = "lora_add_mixed"
"""The kernel for inputs and matrices in bfloat16, and results in float32."""

Matrices = tuple[Tensor, Tensor]
"""A (rank, in_features) and the scaled B^T (rank, out_features) of an adapter in a layer."""

PANEL, TILE_INPUTS, TILE_COLUMNS = 32, 32, 16
"""Of the kernel for `MIXED`."""


def rank_of(a: Tensor) -> int:
    """Of A, laid out or not."""
    return int(a.shape[0 if a.dim() == 2 else 1])


class Updates(ctypes.Structure):
    """The matrices of all slots for layers that get the same input, as the kernel takes them."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "ranks", "widths", "outs")),
        *((name, ctypes.c_int32) for name in ("layers", "inputs", "height")),
    )


class Dealt(ctypes.Structure):
    """The rows of a step by slot, as the kernel takes them, with its scratch memory."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("slots", "order", "starts", "ranks", "places", "used", "low")),
        *((name, ctypes.c_int32) for name in ("blocks", "rows", "width", "num_used")),
    )


class Rows:
    """Rows of a step by the adapter slots that they use, dealt out once for all layers, when the first of them asks."""

    def __init__(self, slots: Tensor, library: ctypes.CDLL | None) -> None:
        """`slots` (rows,) int32, -1: the base model. `library` has the C kernel; None: only `Stack` takes the rows."""
        self.slots = slots
        self._library = library
        self._dealt = torch.empty(2, 0, dtype=torch.int32)
        self._scratch = torch.empty(0)

    @cached_property
    def dealt(self) -> Dealt:
        if self._library is None:
            return Dealt()
        self._dealt = torch.empty(2, len(self) + 1, dtype=torch.int32)
        pointers = self.slots.data_ptr(), *(each.data_ptr() for each in self._dealt)
        return Dealt(*pointers, blocks=self._library.deal_rows(len(self), *pointers), rows=len(self))

    def __len__(self) -> int:
        return len(self.slots)

    def with_room(self, layers: int, width: int) -> Dealt:
        """The rows with room for `width` float32 values of each in every layer. What is in it is anybody's."""
        if len(self._scratch) < layers * len(self) * width:
            self._scratch = torch.empty(layers * len(self) * width)
        self.dealt.low, self.dealt.width = self._scratch.data_ptr(), width
        return self.dealt


class Kernel:
    """The matrices of every slot for layers that get the same input. They stay where they are: a slot points to them.

    So a slot takes no memory beside the adapter's own, where that is laid out as the kernel takes it (`lay_out`), and
    gives it back when it is written again.
    """

    def __init__(
        self,
        num_slots: int,
        inputs: int,
        outputs: list[int],
        dtype: torch.dtype,
        library: ctypes.CDLL,
        *,
        wide: bool = False,
    ) -> None:
        """`outputs`: the out_features of each layer; `dtype`: one of KERNELS; `wide`: results are float32."""
        self._inputs, self._outputs, self.dtype = inputs, outputs, dtype
        self._results_dtype = torch.float32 if wide else dtype
        self._mixed = self._results_dtype is not dtype
        self._tiles = self._mixed and inputs % TILE_INPUTS == 0 and bool(library.has_tiles())
        self._lay_out = library.lora_lay_out
        self._lora_add = getattr(library, MIXED if self._mixed else KERNELS[dtype])
        self._held: list[list[Matrices | None]] = [[None] * len(outputs) for _ in range(num_slots)]
        places = num_slots * len(outputs)
        self._a, self._b = (ctypes.c_void_p * places)(), (ctypes.c_void_p * places)()
        self._ranks, self._widths = (ctypes.c_int32 * places)(), (ctypes.c_int32 * places)()
        self._outs = (ctypes.c_int32 * len(outputs))(*outputs)
        addressof = ctypes.addressof
        tables = addressof(self._a), addressof(self._b), addressof(self._ranks), addressof(self._widths)
        self.updates = Updates(*tables, addressof(self._outs), len(outputs), inputs, 0)
        self._heights = [0] * num_slots  # ranks of all layers together
        self._width = 0
        self._results = (ctypes.c_void_p * len(outputs))()  # a layer without matrices needs none

    def write(self, layer: int, slot: int, matrices: Matrices | None) -> None:
        """Point a slot of the layer with this number to matrices, laid out or not.

        Raises ValueError where they do not fit.
        """
        if matrices is not None and not self._can_read(layer, *matrices):
            alone = {layer: matrices}
            rooms = [torch.zeros(shape, dtype=self.dtype) for shape in self.shapes(alone)]
            matrices = self.lay_out(alone, rooms)[layer]
        self._held[slot][layer] = matrices
        rank, a, b = (0, None, None) if matrices is None else (rank_of(matrices[0]), *matrices)
        place = slot * len(self._outputs) + layer
        self._heights[slot] += rank - self._ranks[place]
        self._ranks[place] = rank
        self._widths[place] = a.stride(0) // 2 if a is not None and self._tiles else 0
        self._a[place], self._b[place] = (None if m is None else m.data_ptr() for m in (a, b))
        self.updates.height = max(self._heights)
        self._width = -(-max(self._ranks) // 2) * 2

    def shapes(self, matrices: dict[int, Matrices]) -> list[tuple[int, ...]]:
        """Of an adapter's matrices by the numbers of their layers, laid out as the kernel reads them: all A, which
        tiles take as one, and then all B^T."""
        ranks = {layer: rank_of(a) for layer, (a, _) in matrices.items()}
        firsts: list[tuple[int, ...]] = [(rank, self._inputs) for rank in ranks.values()]
        if self._tiles:
            width = max(1, sum(ranks.values()))
            firsts = [(self._inputs // 2 + -(-TILE_COLUMNS // width), width, 2)]  # a tile reaches beyond the last pairs
        return firsts + [self._b_shape(layer, rank) for layer, rank in ranks.items()]

    def _b_shape(self, layer: int, rank: int) -> tuple[int, ...]:
        outputs = self._outputs[layer]
        return (-(-outputs // PANEL), -(-rank // 2), PANEL, 2) if self._mixed else (rank, outputs)

    def lay_out(self, matrices: dict[int, Matrices], rooms: list[Tensor]) -> dict[int, Matrices]:
        """Write matrices as they are read into zeros of those `shapes`, and return what there is of each layer. Raises
        ValueError where they do not fit."""
        firsts, seconds = rooms[: -len(matrices)], rooms[-len(matrices) :]
        done: dict[int, Matrices] = {}
        at = 0
        for number, (layer, pair) in enumerate(matrices.items()):
            a, b = (matrix.to("cpu", self.dtype) for matrix in pair)
            rank, outputs = rank_of(a), self._outputs[layer]
            if a.shape != (rank, self._inputs) or b.shape != (rank, outputs):
                shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
                raise ValueError(f"matrices {shapes} for a layer of {self._inputs} to {outputs} features")
            into = firsts[0][: self._inputs // 2, at : at + rank] if self._tiles else firsts[number]
            done[layer] = into, seconds[number]
            at += rank
            if self._mixed:
                a, width = a.contiguous(), firsts[0].shape[1] if self._tiles else 0
                sizes = rank, self._inputs, outputs, width
                results = into.data_ptr(), seconds[number].data_ptr()
                self._lay_out(a.data_ptr(), b.data_ptr(), *b.stride(), *sizes, *results)
            else:
                into.copy_(a)
                seconds[number].copy_(b)
        return done

    def _can_read(self, layer: int, a: Tensor, b: Tensor) -> bool:
        rank = rank_of(a)
        if self._tiles:
            fits = a.shape == (self._inputs // 2, rank, 2) and a.stride()[1:] == (2, 1)
        else:
            fits = a.shape == (rank, self._inputs) and a.is_contiguous()
        fits = fits and b.shape == self._b_shape(layer, rank) and b.is_contiguous()
        return fits and all(matrix.device.type == "cpu" and matrix.dtype is self.dtype for matrix in (a, b))

    def add(self, x: Tensor, ys: dict[int, Tensor], rows: Rows) -> None:
        """y (..., outputs) += B A x of each row's slot, for the y of each layer by number; x (..., inputs)."""
        x = x.to(self.dtype).contiguous()
        for layer, y in ys.items():
            if y.dtype is not self._results_dtype or not y.is_contiguous():
                raise RuntimeError(f"a layer's rows are {y.dtype}, its adapters' results {self._results_dtype}")
            self._results[layer] = y.data_ptr()
        dealt = rows.with_room(len(self._outputs), self._width)
        structs = ctypes.addressof(self.updates), ctypes.addressof(dealt)
        self._lora_add(x.data_ptr(), ctypes.addressof(self._results), *structs)


class Stack:
    """A and B of every slot for one layer: (slots, height, in) and (slots, height, out), the height being the highest
    rank in them."""

    def __init__(self, num_slots: int, inputs: int, outputs: int, like: Tensor) -> None:
        self.a = like.new_zeros(num_slots, 0, inputs)
        self.b = like.new_zeros(num_slots, 0, outputs)
        self._ranks = [0] * num_slots

    def write(self, slot: int, matrices: Matrices | None) -> None:
        rank = 0 if matrices is None else len(matrices[0])
        self._ranks[slot] = max(rank, self._ranks[slot])  # beyond it are zeros, also where this fails half-way
        self._resize(max(self._ranks))
        for stack in (self.a, self.b):
            stack[slot, rank:] = 0
        if matrices is not None:
            self.a[slot, :rank].copy_(matrices[0])
            self.b[slot, :rank].copy_(matrices[1])
        self._ranks[slot] = rank
        self._resize(max(self._ranks))

    def _resize(self, height: int) -> None:
        more = height - self.a.shape[1]
        if more:
            self.a, self.b = F.pad(self.a, (0, 0, 0, more)), F.pad(self.b, (0, 0, 0, more))

    def add(self, x: Tensor, y: Tensor, rows: Rows) -> None:
        """y (rows, out) += B A x; x (rows, in)."""
        slots = rows.slots.to(y.device)
        foreign = slots[:, None] != torch.arange(len(self.a), device=slots.device)  # (rows, slots)
        low = (x @ self.a.flatten(0, 1).T).view(len(x), len(self.a), -1)
        # Not multiplied by zeros: what overflows in another's matrices must not become a NaN here.
        y.addmm_(low.masked_fill_(foreign[:, :, None], 0).flatten(1), self.b.flatten(0, 1))
