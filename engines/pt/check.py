"""The check at start: two sequences by the engine, in pieces and side by side, against a plain forward pass.

The plain pass is that of transformers' modules before anything is converted, in float32: a model of fewer digits gets
its weights widened for it, those of one module at a time. The sequences are longer than three blocks, which lie in no
order, and go past the windows of the model: wider ones are narrowed meanwhile, for both, as to compute thousands of
tokens in float32 would take most of the start.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engines.checkpoint.spans import spans
from engines.errors import UnsupportedModel
from engines.pt.layers.quantized import is_quantized, rounds_by_batch

BLOCK_SIZE = 16
"""Of the check, on a CPU."""
SHORTEST = 8
"""Tokens, enough for three pieces."""
EXACT, ROUNDED = 1e-3, 0.15
"""Deviations that are none, in float32 and in fewer digits."""
JUNK = 3.0
"""What the cache holds where nothing was written."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one of the sequences that a step computes; what comes out of the last of them is compared."""

    sequence: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the check computes."""

    ids: list[list[int]]
    block_size: int
    tables: list[list[int]]
    """The blocks of each sequence."""
    steps: list[list[Piece]]
    """A sequence starts alike the other, and goes on by a single token while the other has many."""

    @property
    def window(self) -> int:
        """Keys that a token may see, its own included, so that the window is passed by far."""
        return len(self.ids[0]) * 2 // 5

    @property
    def num_blocks(self) -> int:
        return sum(len(table) for table in self.tables)


def plan(vocab_size: int, block_size: int, limit: int) -> Plan:
    """Two sequences of three blocks and a few tokens, or of `limit` tokens where a model takes no more."""
    length = max(min(3 * block_size + 5, limit), SHORTEST)
    first, second = length * 2 // 5, length * 3 // 5
    steps = zip(_pieces(0, first, length - 1, length), _pieces(1, second, second + 1, length), strict=True)
    each = -(-length // block_size)
    blocks = list(range(2 * each))
    ids = [[(i * factor + 13) % vocab_size for i in range(length)] for factor in (7919, 6007)]
    return Plan(ids, block_size, [blocks[1::2][::-1], [*blocks[2::2], 0]], [list(step) for step in steps])


def _pieces(sequence: int, *ends: int) -> list[Piece]:
    return [Piece(sequence, start, end) for start, end in zip((0, *ends), ends, strict=False)]


@dataclass(frozen=True, slots=True)
class Expected:
    """What a model computes by plain forward passes."""

    results: list[Tensor]
    """What comes out of each piece, in the order of the steps: logits, or the hidden states that a head for
    classification gets."""
    tolerance: float
    """The deviation that is none."""
    jumps: bool
    """Whether rounding may send a token to other experts, whose results are others."""

    def rounded(self) -> "Expected":
        """The same of keys and values in 8 bits, which is what is asked for, and no mistake."""
        return replace(self, tolerance=self.tolerance + ROUNDED)


def expected(model: Any, what: Plan, *, classifies: bool) -> Expected:
    """In float32, if that can be had; twice as far as the model in its own dtype is from that is tolerated."""
    ids = torch.tensor(what.ids, device=model.get_input_embeddings().weight.device)
    pieces = [piece for step in what.steps for piece in step]
    places = sorted({piece.end - 1 for piece in pieces})
    keep = torch.tensor(places, device=ids.device)

    def plain() -> list[Tensor]:
        if classifies:
            results = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, keep].float()
        else:
            results = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits.float()
        return [results[piece.sequence, places.index(piece.end - 1)] for piece in pieces]

    with narrow_windows(model, what.window):
        own = plain()
        if model.dtype is torch.float32 and not rounds_by_batch(model):
            return Expected(own, EXACT, jumps=False)
        results = _widely(model, plain) if can_widen(model) else own
    jumps = any(weight.dim() > 2 for weight in model.parameters())
    return Expected(results, max(ROUNDED, 2 * deviation(own, results, jumps=jumps)), jumps)


def _widely(model: nn.Module, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
    try:
        with widened(model):
            return compute()
    except RuntimeError:  # a module that looks at the dtype of another's weights
        return compute()


def deviation(found: list[Tensor], wanted: list[Tensor], *, jumps: bool = False) -> float:
    """How far results are off, relative to how far they lie from their mean: the root of the mean of squares over all
    pieces; where a model `jumps`, the median."""
    pairs = zip(found, wanted, strict=True)
    each = torch.stack([(f.float() - w).norm() / (w - w.mean()).norm() for f, w in pairs])
    return float(each.median() if jumps else each.square().mean().sqrt())


def can_widen(model: nn.Module) -> bool:
    """Whether its weights can be widened: all are plain, and nothing hooks into the modules, as where a model is spread
    over devices."""
    return not any(is_quantized(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """While it lasts, a model of fewer digits computes in float32. The weights of a module are float32 while it runs,
    those of a linear layer some outputs after others; tables are looked up as they are, and the rows widened."""
    narrow: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and parameter.dtype is not torch.float32:
                narrow[parameter] = parameter.data
                parameter.data = parameter.data.float()

    def give_back(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter in narrow:
                parameter.data = narrow.pop(parameter)

    def widen_rows(_: nn.Module, __: Any, rows: Tensor) -> Tensor:
        return rows.float()

    handles, linears = [], []
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            handles.append(module.register_forward_hook(widen_rows))
        elif type(module) is nn.Linear and "forward" not in vars(module):
            module.forward = partial(_some_after_others, module)
            linears.append(module)
        elif next(module.parameters(recurse=False), None) is not None:
            handles.append(module.register_forward_pre_hook(widen))
            handles.append(module.register_forward_hook(give_back))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for linear in linears:
            del linear.forward
        for parameter, data in narrow.items():
            parameter.data = data


def _some_after_others(layer: nn.Linear, x: Tensor) -> Tensor:
    """What a linear layer gives in float32: a head's weights, all together, would take twice their memory."""
    found = x.new_empty(*x.shape[:-1], layer.out_features, dtype=torch.float32)
    for span in spans(layer.out_features, layer.in_features):
        bias = None if layer.bias is None else layer.bias[span].float()
        found[..., span] = nn.functional.linear(x.float(), layer.weight[span].float(), bias)
    return found


@contextmanager
def narrow_windows(model: Any, window: int) -> Iterator[None]:
    """While it lasts, no layer sees more than `window` keys, where it has a window."""
    held = [model.config.get_text_config(), *model.modules()]
    own = [(each, each.sliding_window) for each in held if isinstance(getattr(each, "sliding_window", None), int)]
    try:
        for each, width in own:
            each.sliding_window = min(width, window)
        yield
    finally:
        for each, width in own:
            each.sliding_window = width


def problem(name: str, compute: Callable[[list[Piece]], list[Tensor]], what: Plan, wanted: Expected) -> str | None:
    """What is wrong with how the engine computes a model; None: nothing. `compute`: what comes out of the pieces of a
    step."""
    try:
        found = [result for step in what.steps for result in compute(step)]
    except UnsupportedModel:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, it is told
        return f"{name} fails on flat batches: {error}"
    measured = deviation(found, wanted.results, jumps=wanted.jumps)
    if measured < wanted.tolerance:
        return None
    return f"{name} computes something else on flat batches than alone (relative deviation {measured:.2g})"
