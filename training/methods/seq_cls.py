"""Classification: a text has a class, several, or a number, which a head on the model learns to tell."""

from typing import TYPE_CHECKING, Any, ClassVar

from training.methods.base import Method
from training.params.head import unfit
from training.params.refusal import Refusal
from training.params.sft import SftParams

if TYPE_CHECKING:
    from training.trainers.job.job import Training

METRICS = {
    "regression": ("mse", "mae"),
    "single_label_classification": ("accuracy",),
    "multi_label_classification": ("accuracy", "micro_f1"),
}
"""`problem_type` -> what an evaluation reports beside `loss`."""


class SeqCls(Method[SftParams]):
    name = "seq_cls"
    task = "sft"
    params = SftParams
    choice: ClassVar = {"task_type": name}
    task_type = "seq_cls"
    rows = "classes"
    reads = frozenset({"num_labels", "problem_type"})

    def metrics(self, params: SftParams) -> tuple[str, ...]:
        if params.problem_type is not None:
            return METRICS[params.problem_type]
        if params.num_labels is None:  # config.json of the model will say
            return tuple(dict.fromkeys(name for names in METRICS.values() for name in names))
        return METRICS["regression" if params.num_labels == 1 else "single_label_classification"]

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = []
        if params.num_labels and params.problem_type and (reason := unfit(params.num_labels, params.problem_type)):
            found.append(("problem_type", reason))
        if params.router_aux_loss_coef:
            found.append(("router_aux_loss_coef", "models with a head compute no such loss: leave it out"))
        return found

    def trainer(self, job: "Training[SftParams]") -> Any:
        from training.losses.classes import Classes, Labelled
        from training.trainers.head import HeadTrainer

        problem, labels = job.params.problem_type, job.params.num_labels
        assert problem is not None and labels is not None  # as the model's head has them
        collator = Labelled(job.tokenizer.pad_token_id, problem, labels)
        return HeadTrainer(job, data_collator=collator, loss=Classes(problem))
