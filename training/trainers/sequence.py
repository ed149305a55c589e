"""Sequences that are divided among processes, as DeepSpeed-Ulysses does it (Jacobs et al. 2023, arXiv:2309.14509).

Each process of a group has the same batch and a part of its tokens, one after the other. For attention they exchange:
each has all tokens of a part of the heads, and afterwards its own tokens of all heads again. So memory for activations
and logits falls with the size of the group, which has to divide the heads. The loss of a batch is the sum of theirs.

Evaluations have whole sequences.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engines.errors import InvalidRequest, UnsupportedModel
from training.data.encode import IGNORED
from training.losses.log_probs import next_of
from training.trainers.model import BOUNDED

NAME = "divided_sequences"
"""Of our attention, among transformers'."""


@dataclass(frozen=True, slots=True)
class _Group:
    size: int
    rank: int
    """Which part this process has."""
    processes: ProcessGroup


@dataclass(frozen=True, slots=True)
class _Batch:
    group: _Group
    samples: list[list[tuple[int, int]]] | None
    """Begin and end of each sample, for each row; None: a row is one sample."""


class _Now:
    """What the attention of all layers is about; kept until the next batch, as layers may be computed again in the
    backward pass."""

    batch: _Batch | None = None


class SequenceDivided:
    """Goes before a Trainer among a class's bases: with `sequence_parallel_size` above 1, gives its processes the same
    batches by groups, and each a part of their tokens."""

    _group: _Group | None = None

    if TYPE_CHECKING:
        job: Any
        args: Any
        model: Any

    def divide_sequences(self) -> None:
        """Raises InvalidRequest, UnsupportedModel."""
        size = self.job.params.sequence_parallel_size
        if size > 1:
            check_attention(self.model.config.get_text_config(), size)
            self._group = _group_of(size, self.args.process_index, self.args.world_size)
            self.model.config.get_text_config()._attn_implementation = NAME

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()  # type: ignore[misc]  # the Trainer behind us
        if self._group is not None:  # accelerate has given each process batches of its own
            shared = loader.batch_sampler
            shared.num_processes //= self._group.size
            shared.process_index //= self._group.size
        return loader

    def get_total_train_batch_size(self, args: Any) -> int:
        total: int = super().get_total_train_batch_size(args)  # type: ignore[misc]
        return total // (self._group.size if self._group else 1)

    def _track_num_input_tokens(self, inputs: Mapping[str, Any]) -> None:
        if self._group is not None and self._group.rank > 0:  # the first of a group counts
            inputs = {name: each[:0] for name, each in inputs.items()}
        super()._track_num_input_tokens(inputs)  # type: ignore[misc]

    def part_of(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """This process's part of a batch to learn from; all of it where sequences are not divided."""
        if self._group is None:
            return inputs
        _Now.batch = _Batch(self._group, _samples(inputs))
        return _part(inputs, self._group)

    @property
    def parts(self) -> int:
        """Processes that have the same batch."""
        return self._group.size if self._group else 1


def check_attention(config: Any, size: int) -> None:
    """`config`: the language model's. Raises UnsupportedModel."""
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - BOUNDED)
    reason = None
    if config.num_attention_heads % size:
        reason = f"{size} processes cannot share {config.num_attention_heads} heads of attention evenly"
    elif kinds:
        reason = f"layers of {config.model_type} ({', '.join(kinds)}) go from token to token"
    elif getattr(config, "attn_logit_softcapping", None) or config.model_type == "gpt_oss":
        reason = f"the attention of {config.model_type} is one of its own"
    if reason:
        raise UnsupportedModel(reason, param="sequence_parallel_size")


def _group_of(size: int, rank: int, count: int) -> _Group:
    if count % size:
        message = f"{count} processes do not make groups of {size}"
        raise InvalidRequest(message, param="sequence_parallel_size")
    groups = [torch.distributed.new_group(range(start, start + size)) for start in range(0, count, size)]
    return _Group(size, rank % size, groups[rank // size])


def _samples(inputs: Mapping[str, Any]) -> list[list[tuple[int, int]]] | None:
    if "attention_mask" in inputs:  # padded on the right, which no token sees
        return None
    rows = []
    for positions in inputs["position_ids"]:
        begins = [*(positions == 0).nonzero().flatten().tolist(), len(positions)]
        rows.append(list(itertools.pairwise(begins)))
    return rows


def _part(inputs: Mapping[str, Tensor], group: _Group) -> dict[str, Tensor]:
    """With `shift_labels`: of each token, the next one's label, which may be in the next part; its `loss_scale` too."""
    missing = -inputs["input_ids"].shape[1] % group.size
    labels = inputs["labels"]
    whole = {
        "input_ids": nn.functional.pad(inputs["input_ids"], (0, missing)),
        "position_ids": nn.functional.pad(inputs["position_ids"], (0, missing)),
        "labels": nn.functional.pad(labels, (0, missing), value=IGNORED),
        "shift_labels": nn.functional.pad(next_of(labels), (0, missing), value=IGNORED),
    }
    if (scale := inputs.get("loss_scale")) is not None:
        whole["loss_scale"] = nn.functional.pad(scale[:, 1:], (0, 1 + missing))
    return {name: each.chunk(group.size, dim=1)[group.rank] for name, each in whole.items()}


# ---- attention


class _Exchange(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Divide dimension `apart` among the processes, and join dimension `joined`, which was divided."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, group: _Group, apart: int, joined: int) -> Tensor:
        context.way = group, apart, joined
        sent = torch.stack(tensor.chunk(group.size, dim=apart)).contiguous()
        received = torch.empty_like(sent)
        torch.distributed.all_to_all_single(received, sent, group=group.processes)
        return torch.cat(received.unbind(), dim=joined)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        group, apart, joined = context.way
        return _Exchange.apply(gradients[0], group, joined, apart), None, None, None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """As transformers' attention functions: `query`, `key` and `value` are (samples, heads, tokens, size of a head),
    and what is returned (samples, tokens, heads, size of a head)."""
    batch = _Now.batch
    if batch is None or not module.training:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)  # type: ignore[no-any-return]
    heads, size = query.shape[1], batch.group.size
    if key.shape[1] % size:  # fewer heads than processes: each needs all that its queries look at
        key, value = (each.repeat_interleave(heads // each.shape[1], dim=1) for each in (key, value))
    query, key, value = (_Exchange.apply(each, batch.group, 1, 2) for each in (query, key, value))
    repeated = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(repeated, dim=1) for each in (key, value))
    attended = _whole(query, key, value, batch.samples, settings)
    return _Exchange.apply(attended, batch.group, 2, 1).transpose(1, 2).contiguous(), None


def _whole(
    query: Tensor, key: Tensor, value: Tensor, samples: list[list[tuple[int, int]]] | None, settings: dict[str, Any]
) -> Tensor:
    """Of whole sequences: (rows, heads, tokens, size of a head) each."""
    if samples is None:
        return _causal(query, key, value, settings)
    attended = torch.zeros_like(query)
    for row, begin, end in _places(samples):
        at = (slice(row, row + 1), slice(None), slice(begin, end))
        attended[at] = _causal(query[at], key[at], value[at], settings)
    return attended


def _places(samples: list[list[tuple[int, int]]]) -> Iterator[tuple[int, int, int]]:
    return ((row, begin, end) for row, spans in enumerate(samples) for begin, end in spans if end > begin)


def _causal(query: Tensor, key: Tensor, value: Tensor, settings: dict[str, Any]) -> Tensor:
    window, tokens = settings.get("sliding_window"), query.shape[2]
    mask = None
    if window is not None and window < tokens:
        at = torch.arange(tokens, device=query.device)
        behind = at[:, None] - at
        mask = (behind >= 0) & (behind < window)
    return nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=settings.get("dropout", 0.0),
        scale=settings.get("scaling"),
    )


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
