"""Parameters of generalised knowledge distillation, which learns from a larger model."""

from typing import Annotated

from pydantic import Field

from engines.params.about import About
from engines.params.base import Params
from engines.params.model import Revision


class GkdParams(Params):
    """Learning from a larger model (GKD). An addition to the reference's parameters, by the names of its later versions
    and of TRL."""

    teacher_model: Annotated[str | None, About(names="model")] = None
    """The model that is learned from, as `model`. It must have the same tokens."""
    teacher_model_type: Annotated[str | None, About(text=True)] = None
    """Family of the teacher, as `model_type`."""
    teacher_model_revision: Annotated[Revision | None, About(text=True)] = None
    """Branch, tag or commit of the teacher, as `model_revision`."""
    lmbda: float = Field(0.5, ge=0, le=1)
    """The part of all batches whose answers the trained model gives itself; the others have those of the data."""
    seq_kd: bool = False
    """Have the teacher answer in place of the data."""
