"""The weights of a model in a GGUF file, tensor by tensor as they are wanted, and some rows of a tensor at a time.

llama.cpp has its own names, rotates pairs of neighbours where transformers rotates the halves of a head, and keeps
Gemma's norms with the one that they are above.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engines.checkpoint.gguf.blocks import KINDS, integers_from
from engines.checkpoint.gguf.config import ARCHITECTURES
from engines.checkpoint.gguf.file import GgufFile, StoredTensor, unsupported
from engines.checkpoint.integers import Integers

PERMUTED = ("llama", "granite", "smollm3")
ROTATED = re.compile(r"blk\.\d+\.attn_(q|k)\.(weight|bias)")
UNREAD = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the configuration is made of."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the file, as the model has it."""

    stored: StoredTensor
    heads: int
    """Rows of so many are rotated; 0: they lie as they are wanted."""
    above_one: bool
    """Whether one is to be taken from it."""

    @property
    def has_integers(self) -> bool:
        """Whether a kernel has a place for its type."""
        return self.stored.kind in KINDS and len(self.stored.shape) == 2

    def integers(self) -> Integers:
        found: Integers | None = None
        for span, rows in self.stored.rows():
            some = integers_from(self.stored.kind, rows)
            found = some.like(self.stored.shape[0]) if found is None else found
            found.write(span, some)
        assert found is not None, "no tensor is empty"
        return found.reordered(self._in_order)

    def values(self, dtype: torch.dtype) -> Tensor:
        if self.above_one:
            return (self._in_order(self.stored.values(torch.float32)) - 1.0).to(dtype)
        return self._in_order(self.stored.values(dtype))

    def _in_order(self, rows: Tensor) -> Tensor:
        """Rows as transformers has them. Those of quantised weights are moved whole."""
        if not self.heads:
            return rows
        pairs = rows.view(self.heads, rows.shape[0] // self.heads // 2, 2, *rows.shape[1:])
        return pairs.transpose(1, 2).reshape(rows.shape)


def weights_in(file: GgufFile, model: Any) -> dict[str, Weight]:
    """The tensors for the parameters of `model` (a `PreTrainedModel` without weights), by their names there.

    Raises UnsupportedModel where the file has others, or not all.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: _weight(file, theirs) for name, theirs in _names(file, shapes) if theirs in file.tensors}
    may_miss = {name for name in shapes if name in model.all_tied_weights_keys or name.startswith("score.")}
    if missing := sorted(shapes.keys() - found.keys() - may_miss):
        raise unsupported(file.path, f"has no weights for {missing[0]}")
    if others := sorted(file.tensors.keys() - {weight.stored.name for weight in found.values()} - {*UNREAD}):
        raise unsupported(file.path, f"has weights that its architecture has not: {others[0]}")
    for name, weight in found.items():
        if weight.stored.shape != shapes[name]:
            raise unsupported(file.path, f"has {name} of the shape {weight.stored.shape}, not {shapes[name]}")
    return found


def _names(file: GgufFile, shapes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """transformers' names and llama.cpp's."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    known = get_tensor_name_map(architecture, file.own("block_count"))
    for name in shapes:
        theirs = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is not None:
            yield name, theirs


def _weight(file: GgufFile, name: str) -> Weight:
    heads = 0
    if file.architecture in PERMUTED and (rotated := ROTATED.fullmatch(name)):
        heads = file.own("attention.head_count")
        heads = file.own("attention.head_count_kv", heads) if rotated[1] == "k" else heads
    gemma = ARCHITECTURES[file.architecture][0].startswith("gemma")
    return Weight(file.tensors[name], heads, above_one=gemma and name.endswith("norm.weight"))
