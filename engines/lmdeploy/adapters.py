"""Which layers LMDeploy may be asked to adapt."""

from dataclasses import replace

from engines.checkpoint.loading import load_config
from engines.checkpoint.structure import Structure, describe

ROUTERS = ("gate", "router", "shared_expert_gate")
"""LMDeploy has no place for LoRA there, and ends where it is asked for one."""


def adaptable(folder: str) -> Structure:
    """transformers' model, of whose linear layers the routers are left out.

    Whether LMDeploy's model has a place for each shows once it is built.
    """
    structure = describe(load_config(folder))
    linears = {path: shape for path, shape in structure.linears.items() if path.rpartition(".")[2] not in ROUTERS}
    return replace(structure, linears=linears)


def name_packed_layers() -> None:
    """Mixtral's class of LMDeploy leaves out which layers it has packed into one, without which LMDeploy finds no place
    for adapters of these."""
    from lmdeploy.pytorch.models.mixtral import MixtralForCausalLM

    MixtralForCausalLM.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
