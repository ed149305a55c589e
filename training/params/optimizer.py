"""Which optimizer changes the weights. An addition to the reference's parameters, by transformers' names."""

from typing import Annotated

from engines.params.about import TRAINING, About
from engines.params.base import JsonObject, Params
from training.params.choices import Optim


class OptimizerParams(Params):
    """The optimizer, by transformers' names."""

    optim: Annotated[Optim, About(TRAINING)] = "adamw_torch_fused"
    """The optimizer, by transformers' names: AdamW unless given; `adamw_8bit`, `paged_adamw_8bit`, `adafactor`,
    `lion_32bit`, `sgd`, `schedule_free_adamw`, `apollo_adamw` and others; `muon` besides. `use_galore` and
    `lorap_lr_ratio` have parameters of their own."""
    optim_args: Annotated[JsonObject | None, About(TRAINING, text=True)] = None
    """Further settings of that optimizer: `{"momentum": 0.9}` for sgd, `{"rank": 64}` for apollo_adamw."""
