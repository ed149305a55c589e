"""The tuners, one file each. Light: the server refuses jobs by them."""

from training.params.refusal import Refusal, not_supported, read_by_others_only
from training.params.sft import SftParams
from training.tuners.adalora import Adalora
from training.tuners.base import Tuner
from training.tuners.boft import Boft
from training.tuners.bone import Bone
from training.tuners.fourierft import FourierFt
from training.tuners.full import Full
from training.tuners.houlsby import Houlsby
from training.tuners.ia3 import Ia3
from training.tuners.llamapro import Llamapro
from training.tuners.loha import Loha
from training.tuners.lokr import Lokr
from training.tuners.longlora import LongLora
from training.tuners.lora import Lora
from training.tuners.randlora import RandLora
from training.tuners.reft import Reft
from training.tuners.trainable_tokens import TrainableTokens
from training.tuners.vera import Vera

_ALL: tuple[Tuner, ...] = (
    Lora(),
    Full(),
    Vera(),
    Adalora(),
    Boft(),
    FourierFt(),
    Bone(),
    Loha(),
    Lokr(),
    Ia3(),
    RandLora(),
    TrainableTokens(),
    LongLora(),
    Llamapro(),
    Houlsby(),
    Reft(),
)
TUNERS = {tuner.name: tuner for tuner in _ALL}


def tuner_of(params: SftParams) -> Tuner:
    """The tuner that `params` choose, which are not refused."""
    return TUNERS[params.train_type]


def refusals(params: SftParams) -> list[Refusal]:
    """What the chosen tuner does not take."""
    if params.train_type not in TUNERS:
        return [("train_type", not_supported(params.train_type, TUNERS))]
    tuner = tuner_of(params)
    readers = {name: each.reads for name, each in TUNERS.items()}
    return read_by_others_only(params, "train_type", tuner.name, readers) + tuner.refusals(params)
