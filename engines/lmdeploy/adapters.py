"""Which layers LMDeploy may be asked to adapt."""

from engines.checkpoint.loading import load_config
from engines.checkpoint.structure import describe

ROUTERS = ("gate", "router", "shared_expert_gate")
"""LMDeploy has no place for LoRA there, and ends where it is asked for one."""


def adaptable_linears(folder: str) -> dict[str, tuple[int, int]]:
    """Path -> (in_features, out_features) of the linear layers of transformers' model, its head and routers aside.

    Whether LMDeploy's model has a place for each shows once it is built.
    """
    linears = describe(load_config(folder)).linears
    return {path: shape for path, shape in linears.items() if path.rpartition(".")[2] not in ROUTERS}
