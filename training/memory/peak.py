"""How much memory the tensors of a computation take, of which each is counted from when it is made until it is let go.

Meant for torch's fake tensors, which say what they would take and take nothing.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.memory.kernels import Seen

ANSWERS = {
    torch.ops.aten.allclose.default: True,
    torch.ops.aten.equal.default: True,
    torch.ops.aten._local_scalar_dense.default: False,
}
"""What is said where a computation asks for values, which tensors without memory have not: that our logits are the
model's, that gradients are of bfloat16, that not every token is seen, that a number is 0."""


class Answers(TorchDispatchMode):  # type: ignore[misc]  # torch is untyped here
    """While it lasts, gives them."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._grouped_mm.default:
            return _grouped_product(*args, **(kwargs or {}))
        return ANSWERS[function] if function in ANSWERS else function(*args, **(kwargs or {}))


def _grouped_product(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> Tensor:
    """What experts multiply, without its values. torch says of shapes in bfloat16 only what it takes in float32 too.

    `offs`: where each group of rows ends; of rows (rows, in) with weights (groups, in, out), or of both sides cut.
    """
    if a.dim() == 2 and b.dim() == 2:
        assert offs is not None, "both sides are cut into groups"
        shape: tuple[int, ...] = (offs.shape[0], a.shape[0], b.shape[1])
    else:
        shape = (*a.shape[:-1], b.shape[-1]) if a.dim() == 2 or b.dim() == 3 else (a.shape[-2], b.shape[-1])
    return a.new_empty(shape, dtype=out_dtype)


class Peak(Answers):
    """While it lasts, counts. Memory that a kernel takes and gives back by itself is not seen."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.parts: dict[str, int] = {}
        """Bytes by what they are, at the moment at which most were in use."""
        self.seen = Seen(vocab_size)
        self._vocab_size = vocab_size
        self._now: dict[str, int] = {}
        self._most = 0
        self._held: dict[int, tuple[Any, str, int]] = {}  # by its storage

    def hold(self, model: nn.Module, *, at_once: bool = False) -> None:
        """Count the weights of `model`, and their gradients as such. `at_once`: each goes as soon as it is there."""

        def learn(weight: Tensor) -> None:
            self._count(weight.grad, "gradients")
            if at_once:
                weight.grad = None

        for tensor in (*model.parameters(), *model.buffers()):
            self._count(tensor, "weights")
            if tensor.requires_grad:
                tensor.register_post_accumulate_grad_hook(learn)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_dispatch__(function, types, args, kwargs)
        self.seen.add(function, args)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                of_vocabulary = tensor.dim() > 1 and tensor.shape[-1] == self._vocab_size
                self._count(tensor, "logits" if of_vocabulary else "activations", new=True)
        return made

    def _count(self, tensor: Tensor, what: str, *, new: bool = False) -> None:
        """Count the storage of `tensor` as `what`, whatever it was counted as before; `new`: unless it was."""
        storage = tensor.untyped_storage()
        key: int = storage._cdata
        if key in self._held:
            if new or self._held[key][1] == what:
                return
            _, before, size = self._held[key]
            self._now[before] -= size
        size = storage.nbytes()
        self._held[key] = weakref.ref(storage, lambda _: self._let_go(key)), what, size
        self._now[what] = self._now.get(what, 0) + size
        total = sum(self._now.values())
        if total > self._most:
            self._most, self.parts = total, dict(self._now)

    def _let_go(self, key: int) -> None:
        _, what, size = self._held.pop(key)
        self._now[what] -= size
