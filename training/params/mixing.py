"""How several data sets become one."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from engines.params.about import TRAINING, About
from engines.params.base import Params

Part = Annotated[float, Field(gt=0, le=1)]


class MixingParams(Params):
    """How several data sets become one. Additions to the reference's parameters, by the names that its later versions
    have."""

    interleave_prob: Annotated[
        tuple[Part, ...] | None, About(TRAINING, prepares=True, not_in_fine_tuning="there is one training file")
    ] = None
    """Draw rows from the data sets of `dataset` by these probabilities, one for each, which add up to 1. Unless given,
    the sets follow one another; streamed, they are read in turn."""
    stopping_strategy: Annotated[
        Literal["first_exhausted", "all_exhausted"],
        About(TRAINING, prepares=True, not_in_fine_tuning="there is one training file"),
    ] = "first_exhausted"
    """With `interleave_prob`: stop when the first data set is exhausted, or when all are, where those that are
    exhausted begin again."""

    @field_validator("interleave_prob")
    @classmethod
    def _whole(cls, parts: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if parts is not None and abs(sum(parts) - 1) > 1e-6:
            raise ValueError(f"must add up to 1, not to {sum(parts):g}")
        return parts
