"""What a LoRA adapter starts with: a line for each value of `init_weights`. Light: the server refuses jobs by them."""

from training.tuners.starts.base import Start
from training.tuners.starts.corda import Corda
from training.tuners.starts.eva import Eva
from training.tuners.starts.loftq import Loftq
from training.tuners.starts.lora_ga import LoraGa
from training.tuners.starts.orthogonal import Orthogonal

PISSA = "pissa"
"""The beginning of its variants, too: `pissa_niter_4`."""
_ALL = (
    Start("true", True, begins_as_base=True),
    Start("false", False),
    Start("gaussian", begins_as_base=True),
    Orthogonal(),
    Start(PISSA, takes_out=True),
    Start("olora", takes_out=True, conv1d=False),
    Eva(),
    Corda(),
    LoraGa(),
    Loftq(),
)
STARTS = {start.name: start for start in _ALL}


def start_of(init_weights: str) -> Start | None:
    """None where LoRA has no such start."""
    if init_weights.startswith(f"{PISSA}_niter_"):
        return Start(init_weights, takes_out=True)
    return STARTS.get(init_weights)
