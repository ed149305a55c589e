"""Teaching a model by examples (sft), or by plain text (pt)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from engines.params.about import ANSWERS_ONLY, THE_MODEL, THE_SERVER, TRAINING, About
from engines.params.base import Params
from engines.params.common import BaseParams
from engines.params.template import ChatTemplateParams
from training.params.dry_run import DryRunParams
from training.params.head import HeadParams
from training.params.houlsby import HoulsbyParams
from training.params.mixing import MixingParams
from training.params.numbers import NumbersParams
from training.params.optimizer import OptimizerParams
from training.params.parallel import ParallelParams
from training.params.tokens import TrainableTokensParams
from training.params.trainer import TrainerParams
from training.params.tuner import (
    AdaloraParams,
    BoftParams,
    FourierFtParams,
    FullParams,
    GaloreParams,
    LigerParams,
    LisaParams,
    LlamaproParams,
    LoraGaParams,
    LoraParams,
    ReftParams,
    TunerParams,
    VeraParams,
)


class PredictParams(Params):
    """Evaluation by what the model writes. An addition to the reference's parameters, which its notes speak of."""

    predict_with_generate: bool = False
    """Have the model answer the validation data, and compare its answers with those there: ROUGE and BLEU, in percent,
    beside the loss."""


class SftParams(
    DryRunParams,
    HeadParams,
    HoulsbyParams,
    NumbersParams,
    OptimizerParams,
    ParallelParams,
    PredictParams,
    ChatTemplateParams,
    MixingParams,
    LigerParams,
    ReftParams,
    AdaloraParams,
    LlamaproParams,
    LisaParams,
    GaloreParams,
    TrainableTokensParams,
    VeraParams,
    BoftParams,
    FourierFtParams,
    LoraGaParams,
    LoraParams,
    FullParams,
    TunerParams,
    TrainerParams,
    BaseParams,
):
    """Supervised fine-tuning: teaching a model by examples of conversations."""

    starred: ClassVar = frozenset({"lazy_tokenize"})

    add_version: Annotated[bool, About(TRAINING, one_run=True, not_in_api=THE_SERVER)] = True
    """Put the results of each run into a folder of its own, named by number and time, under `output_dir`."""
    resume_only_model: Annotated[bool, About(TRAINING, one_run=True, not_in_fine_tuning=THE_SERVER)] = False
    """With `resume_from_checkpoint`, take the weights only, and start optimiser, schedule and data anew."""
    check_model: Annotated[bool, About(TRAINING, one_run=True, not_in_api=THE_SERVER)] = True
    """Compare the files of a model's folder with those of the repository on the hub that it says it is a copy of, and
    warn where they differ. Turn it off without a network."""
    loss_type: Annotated[str | None, About(text=True)] = None
    """Name of the loss, where a method has several. In sft and pt: `nll` (unless given), the cross entropy, `dft`
    (dynamic fine-tuning), or one that a file of `custom_register_path` registers; in dpo: `sigmoid` (unless given),
    `sigmoid_norm`, `hinge`, `ipo`, `exo_pair`, `nca_pair`, `robust`, `bco_pair`, `sppo_hard`, `aot`, `aot_unpaired`,
    `apo_zero`, `apo_down` or `discopop`; in cpo: `sigmoid` (unless given), `hinge` or `ipo`; in kto: `kto` (unless
    given) or `apo_zero_unpaired`; in grpo: `grpo` (unless given; the mean of each answer's tokens), `bnpo` (of a
    batch's), `dapo` (of a step's) or `dr_grpo` (their sum, divided by the most that answers may have)."""
    packing: Annotated[bool, About(prepares=True)] = False
    """Put several short samples into one sequence of `max_length` tokens, without their seeing one another."""
    lazy_tokenize: bool | None = None
    """Tokenise samples when they are needed instead of all before training.

    Unless given, for multimodal models only.
    """
    acc_strategy: Literal["seq", "token"] = "token"
    """Whether accuracy counts tokens, or whole sequences that have every token right."""
    max_new_tokens: Annotated[int, About(one_run=True, most=4096, not_in_training=ANSWERS_ONLY)] = Field(64, ge=1)
    """The most tokens of a text that evaluation generates."""
    temperature: Annotated[float, About(one_run=True, not_in_training=ANSWERS_ONLY)] = Field(0.0, ge=0)
    """Temperature of a text that evaluation generates; 0: the likeliest tokens."""
    optimizer: Annotated[str | None, About(path=True)] = None
    """Name of an optimizer that a file of `custom_register_path` registers, in place of the one that `optim` names."""
    metric: Annotated[str | None, About(path=True)] = None
    """Name of a metric that a file of `custom_register_path` registers, of what the model writes in evaluations
    (predict_with_generate)."""

    @property
    def method(self) -> str:
        """Name of the method that they are for, in `training.methods`."""
        return "seq_cls" if self.task_type == "seq_cls" else "sft"


class PtParams(SftParams):
    """Pre-training, or training on: the same as sft over plain text."""

    use_chat_template: Annotated[bool, About(TRAINING, prepares=True, not_in_fine_tuning=THE_MODEL)] = False
    """Build samples with the chat template. Plain text has none, so that this is false here."""
    truncation_strategy: Annotated[Literal["delete", "left", "right", "split"], About(TRAINING, prepares=True)] = (
        "split"
    )
    """What happens to a text of more than `max_length` tokens: it becomes several (`split`, here the default), is left
    out (`delete`), or loses its beginning (`left`) or its end (`right`)."""

    @property
    def method(self) -> str:
        return "pt"
