"""Parameters of the model that the trained one is compared with, beyond the reference's."""

from engines.params.base import Params


class ReferenceParams(Params):
    """An addition to the reference's parameters."""

    precompute_ref_log_probs: bool = False
    """Compute what the reference model says of all answers once, before training, and keep no reference in memory. A
    training that goes on from a checkpoint does not compute it again."""
