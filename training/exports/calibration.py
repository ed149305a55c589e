"""The texts that quantisation measures on, as batches of token ids."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.prepare import build
from training.methods import method_of
from training.params.export import ExportParams, calibration_data

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    input_ids: "Tensor"
    """(samples, tokens), padded at the end."""
    mask: "Tensor"
    """(samples, tokens): which are no padding."""


@dataclass(frozen=True, slots=True)
class Calibration:
    batches: list[Batch]
    samples: int
    notes: tuple[str, ...]
    """Rows that were left out."""


def read_calibration(params: ExportParams, tokenizer: Any) -> Calibration:
    """The first `quant_n_samples` rows of `dataset`, in the order that `data_seed` shuffles them to.

    Raises BadData, InvalidRequest.
    """
    data = calibration_data(params)
    assert data is not None, "refused without a data set"
    sets = build(data, tokenizer, learns=method_of(data).rows)
    count = min(params.quant_n_samples, len(sets.train))
    rows = sets.train.shuffle(seed=params.data_seed).select(range(count))["input_ids"]
    texts = sorted(map(list, rows), key=len)  # those of one batch of about the same length
    size = params.quant_batch_size
    return Calibration([_batch(texts[i : i + size]) for i in range(0, count, size)], count, sets.notes)


def _batch(texts: list[list[int]]) -> Batch:
    import torch

    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return Batch(ids, mask)
