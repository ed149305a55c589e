"""What oneDNN keeps on a CPU: the code that it makes for each product in half precision whose shapes it has not seen,
for as long as 1024 later ones have not come (its primitive cache). Where batches differ in their lengths, most are new.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import torch
from torch import Tensor

from training.memory.lengths import Lengths
from training.params.sft import SftParams
from training.trainers.weights.heap import give_back_now

CAPACITY = 1024
"""Products whose code is kept, unless ONEDNN_PRIMITIVE_CACHE_CAPACITY says otherwise. Fewer save less than their part:
what is freed leaves gaps."""
HALF = (torch.bfloat16, torch.float16)
AT_ONCE = {
    "mm": 1,
    "addmm": 1,
    "addmm_": 1,
    "bmm": 1,
    "baddbmm": 1,
    "_scaled_dot_product_flash_attention_for_cpu": 2,  # scores, and what they weigh
    "_scaled_dot_product_flash_attention_for_cpu_backward": 5,  # scores again; queries, keys, values, weights
}
"""Products that an operation of torch is made of."""
TRIED, WIDTH = 8, 576
"""Numbers of rows, and columns, of the products that tell what one takes."""


@dataclass(slots=True)
class Products:
    """Those of one pass in half precision, each once however often it is computed."""

    of_texts: int = 0
    """Whose shapes follow from a batch's texts."""
    of_learned: int = 0
    """Whose shapes follow from how many tokens are learned."""


class Seen:
    """Counts the products of a pass as its operations come by."""

    def __init__(self, vocab_size: int) -> None:
        self.products = Products()
        self._vocab_size = vocab_size
        self._known: set[Any] = set()

    def add(self, function: Any, args: Any) -> None:
        """An operation (an OpOverload, or a higher-order one) and what it is given."""
        name = getattr(function, "overloadpacket", function).__name__
        given = [each for each in args if isinstance(each, Tensor)]
        if name not in AT_ONCE or any(each.dtype not in HALF for each in given[:2]):
            return
        key = name, *((each.shape, each.stride()) for each in given)
        if key in self._known:
            return
        self._known.add(key)
        if any(self._vocab_size in each.shape for each in given):
            self.products.of_learned += AT_ONCE[name]
        else:
            self.products.of_texts += AT_ONCE[name]


def kernels(products: Products, lengths: Lengths, params: SftParams) -> int:
    """Bytes of their code, once the training has met all shapes that its batches have."""
    samples, accumulated = params.per_device_train_batch_size, params.gradient_accumulation_steps
    passes = params.max_steps * accumulated
    if passes <= 0:
        passes = round(params.num_train_epochs * lengths.rows / samples) + 1
    learned = lengths.different_learned
    if learned > 1 and samples > 1:  # their sums
        learned = passes
    made = products.of_texts * min(lengths.different, passes) + products.of_learned * min(learned, passes)
    return min(made, CAPACITY) * bytes_of_each() if made else 0


@cache
def bytes_of_each() -> int:
    """What the code of a product takes on this machine, which its instructions decide: measured, by some products."""
    weight = torch.zeros(WIDTH, WIDTH, dtype=torch.bfloat16)

    def multiply(rows: int) -> None:
        x = torch.zeros(rows, WIDTH, dtype=torch.bfloat16)
        x @ weight
        x @ weight.T

    multiply(WIDTH)  # what the first one takes by itself
    give_back_now()
    before = psutil.Process().memory_info().rss
    for rows in range(WIDTH + 1, WIDTH + 1 + 2 * TRIED, 2):
        multiply(rows)
    give_back_now()
    return max(0, psutil.Process().memory_info().rss - before) // (2 * TRIED)
