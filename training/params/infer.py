"""Answering a data set, or a person at the terminal."""

from typing import Annotated

from engines.params.about import INFER, About
from engines.params.base import Strings
from engines.params.infer import InferParams
from engines.params.parsers import ParserParams
from engines.params.template import ChatTemplateParams


class AnswerParams(ChatTemplateParams, ParserParams, InferParams):
    """Answering a data set, or a person at the terminal."""

    metric: Annotated[Strings, About(INFER, api_choices=("accuracy", "rouge", "bleu"))] = ()
    """What is measured of the answers where the data has some: `accuracy`, the part that is the same text, `rouge`
    (rouge-1, rouge-2 and rouge-l, F-measures) and `bleu` (bleu-4), in percent; or the name of a metric that a file of
    `custom_register_path` registers."""

    @property
    def names_data(self) -> bool:
        """Whether there is a data set to answer."""
        return bool(self.dataset or self.val_dataset)

    @property
    def answers_data(self) -> bool:
        """Whether a data set is to be answered, be it that of the checkpoint's training; else a person is."""
        return self.names_data or self.load_data_args
