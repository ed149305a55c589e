"""Decoders of the Llama kind on a CPU, a whole step of them in one call of C (`kernels/decoder.c`).

transformers' modules hold the weights, packed by `linear.py`, and compute whatever is not computed here; the call reads
the same memory. `families.py` says which models it knows, to generate text or to classify, with plain linear layers.
"""

import ctypes
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engines.checkpoint.integers import IntegersLinear, integers_of
from engines.pt import families
from engines.pt.layers import eight_bits
from engines.pt.layers.attention import KVCache, LayerShape
from engines.pt.layers.kernel_linear import Grid, KernelLinear
from engines.pt.layers.linear import WideningEmbedding
from engines.pt.layers.quantized import is_quantized
from engines.pt.layers.quantized_linear import QuantizedLinear
from engines.pt.lora import low_rank
from engines.pt.lora.low_rank import Dealt
from engines.pt.lora.slots import LoraSlots

log = logging.getLogger(__name__)

ALIGNMENT = 64
PARTS = ("norms", "projections", "positions", "attention", "mlp", "head")
"""What the time of steps goes to, as `kernels/parts.h` has it."""


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("grid", Grid),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attention_norm", "mlp_norm", "attention_after", "mlp_after")),
        *((name, ctypes.c_void_p) for name in ("query_norm", "key_norm")),
        *((name, _Matrix) for name in ("query", "key", "value", "output", "gate", "up", "down")),
        *((name, ctypes.c_int32) for name in ("window", "turn")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((name, ctypes.c_void_p) for name in ("embeddings", "final_norm", "frequencies", "turn_scales")),
        ("head", _Matrix),
        *((name, ctypes.c_int32) for name in ("num_layers", "hidden", "inner", "heads", "kv_heads", "dim", "rotary")),
        *((name, ctypes.c_int32) for name in ("turns", "dots", "narrow_cache", "kept", "fused", "whole_norms", "gelu")),
        *((name, ctypes.c_float) for name in ("epsilon", "embedding_scale", "given_scale", "logit_scale", "logit_cap")),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("ids", "positions", "slots", "sequences", "table", "wanted")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, ctypes.c_void_p) for name in ("hidden", "logits", "scratch")),
        *((name, ctypes.c_void_p) for name in ("embedded", "updates", "nanoseconds")),
        ("dealt", Dealt),
        *((name, ctypes.c_int32) for name in ("rows", "num_wanted", "max_blocks", "block_size")),
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a step."""

    ids: list[int]
    positions: list[int]
    slots: list[int]
    """Where each row's key and value are stored: block * block_size + offset."""
    sequences: list[int]
    """The row of `table` that each belongs to."""
    table: list[list[int]]
    """The blocks of each sequence, filled up to one width."""
    wanted: list[int]
    """The rows whose results are wanted."""


def reason_against(model: nn.Module) -> str | None:
    """Why a model that is not packed yet cannot be computed here; None: it can, if its weights can be packed."""
    name = type(model).__name__
    if not type(model).__module__.startswith("transformers.models.") or name not in families.NAMES:
        return f"{name} is not one of the decoders it knows"
    if any("forward" in vars(module) or _has_hooks(module) for module in model.modules()):
        return "its modules have hooks"
    for layer in families.text_of(model).layers:
        if families.activation_of(layer) is None:
            return f"its activation is none of {', '.join(families.ACTIVATIONS)}"
        if not layer.self_attn.is_causal:
            return "its tokens see those after them"
        for linear in families.linears_of(layer).values():
            if type(linear) is IntegersLinear:
                continue
            other = type(linear) is not nn.Linear or (is_quantized(linear) and integers_of(linear) is None)
            if other or linear.weight.device.type != "cpu":
                return f"it has a layer that is {type(linear).__name__} on {next(linear.parameters()).device.type}"
            if linear.in_features % 2:
                return f"it has a layer of {linear.in_features} inputs"
    return None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _groups(model: Any) -> Iterator[list[str]]:
    """The paths of linear layers that get the same input, in the order of the kernel."""
    paths = {id(module): path for path, module in model.named_modules()}
    for layer in families.text_of(model).layers:
        linears = families.linears_of(layer)
        for group in families.GROUPS:
            yield [paths[id(linears[name])] for name in group if name in linears]


class NativeDecoder:
    """A packed model of a known kind, as the kernel takes it."""

    def __init__(self, model: Any, shapes: dict[int, LayerShape], lora: LoraSlots, library: ctypes.CDLL) -> None:
        """`model` has been packed, and `reason_against` had none before. Raises ValueError where a layer is not packed
        for the kernel."""
        base, config = families.text_of(model), model.config.get_text_config()
        self._library = library
        self._kept: list[Any] = []  # what the kernel points to
        self.nanoseconds = (ctypes.c_int64 * len(PARTS))()
        """What steps have spent so far in each of their parts."""
        first = shapes[0]
        down = base.layers[0].mlp.down_proj
        self._dots = isinstance(down, KernelLinear) and down.dots
        narrow = type(base.embed_tokens) is WideningEmbedding
        if not narrow and type(down) is not QuantizedLinear:
            raise ValueError("its embeddings are not bfloat16 values")
        self._table = None if narrow else base.embed_tokens
        """Embeddings that are looked up before the step; None: those that the kernel reads."""
        head = model.get_output_embeddings()
        self._vocab_size = 0 if head is None else head.out_features
        self._hidden_size = config.hidden_size
        turns, self._factors = families.turns_of(base), families.factors_of(model)
        layers = (_Layer * len(base.layers))(
            *(self._layer(layer, shapes[i], turns.layers[i]) for i, layer in enumerate(base.layers))
        )
        self._kept.append(layers)
        query_norm = families.norms_of(base.layers[0])["query_norm"]
        self._decoder = _Decoder(
            layers=layers,
            embeddings=self._pointer(base.embed_tokens.weight, torch.bfloat16) if narrow else None,
            final_norm=self._pointer(families.weight_of(base.norm)),
            frequencies=self._pointer(torch.cat(turns.frequencies)),
            turn_scales=self._pointer(torch.tensor(turns.scales)),
            head=_Matrix() if head is None else self._matrix(head),
            num_layers=len(base.layers),
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=first.kv_heads,
            dim=first.key_dim,
            rotary=2 * len(turns.frequencies[0]),
            turns=len(turns.frequencies),
            dots=self._dots,
            narrow_cache=first.dtype is torch.bfloat16,
            kept=eight_bits.number_of(first.kept),
            fused="key" not in families.linears_of(base.layers[0]),
            whole_norms=query_norm is not None and query_norm.weight.numel() != first.key_dim,
            gelu=families.activation_of(base.layers[0]) != "silu",
            epsilon=families.epsilon_of(base.norm),
            embedding_scale=self._factors.table * self._factors.embedded,
            given_scale=self._factors.given,
            logit_scale=self._factors.logits,
            logit_cap=self._factors.cap,
        )
        self._scratch = torch.empty(0, dtype=torch.uint8)
        updates = [lora.updates(paths) for paths in _groups(model)]
        if None in updates:
            raise ValueError("its layers were not called in groups")
        self._updates = [each for each in updates if each is not None]
        self._lora, self._writes = lora, 0
        self._used = (ctypes.c_void_p * len(updates))()
        """The updates that have adapters, after so many writes."""

    def _layer(self, layer: Any, shape: LayerShape, turn: int) -> _Layer:
        norms = {
            name: None if norm is None else self._pointer(families.weight_of(norm))
            for name, norm in families.norms_of(layer).items()
        }
        linears = families.linears_of(layer)
        if type(linears["gate"]) is not type(linears.get("up", linears["gate"])):
            raise ValueError("its gates are of two kinds")
        matrices = {name: self._matrix(linear) for name, linear in linears.items()}
        return _Layer(**norms, **matrices, window=shape.window, turn=turn, scale=shape.scale, softcap=shape.softcap)

    def _matrix(self, linear: Any) -> _Matrix:
        if not isinstance(linear, KernelLinear) or linear.dots != self._dots:
            raise ValueError("its weights are neither bfloat16 values nor integers")
        self._kept.append(linear)
        bias = None if linear.bias is None else linear.bias.data_ptr()
        return _Matrix(linear._packed.data_ptr(), bias, linear.in_features, linear.out_features, linear.grid)

    def _pointer(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
        kept = tensor.detach().to(dtype).contiguous()
        self._kept.append(kept)
        return int(kept.data_ptr())

    def step(
        self,
        rows: Rows,
        cache: KVCache,
        adapted: low_rank.Rows | None,
        embedded: Tensor | None,
        *,
        with_logits: bool,
    ) -> tuple[Tensor, Tensor]:
        """Compute all rows, and store their keys and values. Returns the logits (wanted, vocab_size), empty where they
        are not to be computed, and the hidden states (wanted, hidden_size), float32.

        `adapted`: the rows by adapter; None: all of them are the base model's. `embedded` (rows, hidden_size) float32:
        in place of the embeddings of the ids.
        """
        if embedded is None and self._table is not None:
            embedded = self._table(torch.tensor(rows.ids)).float().contiguous()
        if embedded is not None and self._factors.embedded != 1.0:
            embedded = embedded * self._factors.embedded
        logits = torch.empty(len(rows.wanted), self._vocab_size if with_logits else 0)
        hidden = torch.empty(len(rows.wanted), self._hidden_size)
        numbers = [
            torch.tensor(each, dtype=torch.int64 if each is rows.slots else torch.int32)
            for each in (rows.ids, rows.positions, rows.slots, rows.sequences, rows.table, rows.wanted)
        ]
        step = _Step(
            *(each.data_ptr() for each in numbers),
            *map(ctypes.addressof, cache.addresses),
            hidden.data_ptr(),
            logits.data_ptr() if with_logits else None,
            None,
            None if embedded is None else embedded.data_ptr(),
            None,
            ctypes.addressof(self.nanoseconds),
            Dealt(),
            len(rows.ids),
            len(rows.wanted),
            len(rows.table[0]),
            cache.block_size,
        )
        if adapted is not None:
            step.updates = self._used_updates()
            step.dealt = adapted.dealt
            step.dealt.ranks = ctypes.addressof(self._lora.ranks)
        step.scratch = self._room(step)
        self._library.decoder_step(ctypes.addressof(self._decoder), ctypes.addressof(step))
        return logits, hidden

    def _used_updates(self) -> int:
        """Where those are of groups that an adapter has touched, as the kernel takes them."""
        if self._writes != self._lora.writes:
            self._writes = self._lora.writes
            self._used[:] = [ctypes.addressof(each) if each.height else None for each in self._updates]
        return ctypes.addressof(self._used)

    def finish(self, logits: Tensor) -> Tensor:
        """Logits of what the head gives, where something else than the kernel has computed it."""
        logits = logits.float() * self._factors.logits
        cap = self._factors.cap
        return torch.tanh(logits / cap) * cap if cap else logits

    def _room(self, step: _Step) -> int:
        """Where the kernel may write what it needs in between."""
        needed = self._library.decoder_scratch(ctypes.addressof(self._decoder), ctypes.addressof(step)) + ALIGNMENT
        if len(self._scratch) < needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        return -(-int(self._scratch.data_ptr()) // ALIGNMENT) * ALIGNMENT
