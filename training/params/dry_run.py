"""Looking before training. An addition to the reference's parameters."""

from typing import Annotated

from engines.params.about import TRAINING, About
from engines.params.base import Params


class DryRunParams(Params):
    """Looking before training."""

    dry_run: Annotated[bool, About(TRAINING, one_run=True, not_in_fine_tuning="it makes no model")] = False
    """Train nothing: prepare the data, and say what the training would take of the device's memory and, where that is
    too much, which parameters to change. No weights are loaded."""
