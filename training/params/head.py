"""A head that judges a whole text."""

from typing import Annotated, Literal

from engines.params.about import THE_MODEL, About
from engines.params.base import Params

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


class HeadParams(Params):
    """A head that judges a whole text. An addition to the reference's parameters, by the name that its later versions
    and transformers' configurations have."""

    problem_type: Annotated[ProblemType | None, About(prepares=True, not_in_fine_tuning=THE_MODEL)] = None
    """What the labels of a `seq_cls` model are, and its loss: numbers (`regression`, mean squared error), one class of
    `num_labels` (`single_label_classification`, cross entropy) or any number of them (`multi_label_classification`,
    binary cross entropy of each). What config.json of a model with a head says unless given; for a new head,
    `regression` with one label, else one class."""


def unfit(labels: int, problem: ProblemType) -> str | None:
    """Why a head of so many labels is not for such a problem; None where it is."""
    if (labels == 1) == (problem == "regression"):
        return None
    return f"{problem} with num_labels {labels}: a regression has 1, and classes are several"
