"""What methods have in common that learn from pairs of answers, of which one is to become likelier than the other."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from training.data.samples import Learns
from training.methods.base import Beside, Method
from training.params.refusal import Refusal, not_supported
from training.params.rlhf import RlhfParams

if TYPE_CHECKING:
    from training.trainers.job.job import Training

BETA = 0.1
"""Unless given: the reference's."""
REFERENCE = frozenset({"ref_model", "ref_model_type", "ref_model_revision", "precompute_ref_log_probs"})
"""Parameters of methods that compare the model with another one."""


class FromPairs(Method[RlhfParams]):
    task = "rlhf"
    params = RlhfParams
    rows: Learns = "pairs"
    hyperparameters: ClassVar[Mapping[str, Any]] = {"beta": BETA}
    divisible = True
    losses: ClassVar[tuple[str, ...]]
    """Choices of `loss_type`, the first unless given; names in `training.losses.pairs`."""
    smoothed: ClassVar[frozenset[str]] = frozenset()
    """Those of them that read `label_smoothing`."""

    def loss_type(self, params: RlhfParams) -> str:
        return self.losses[0] if params.loss_type is None else params.loss_type

    def beta(self, params: RlhfParams) -> float:
        return float(self.hyperparameters["beta"] if params.beta is None else params.beta)

    def answer_weight(self, params: RlhfParams) -> float:
        """Weight of the chosen answers' own loss."""
        return 0.0

    def beside(self, params: RlhfParams) -> Beside:
        compared = self.compares and not params.precompute_ref_log_probs
        return Beside(texts=2, entropy=True, reference=compared)

    def metrics(self, params: RlhfParams) -> tuple[str, ...]:
        answers = [f"{name}/{answer}" for name in ("rewards", "logps") for answer in ("chosen", "rejected")]
        own = ("nll_loss",) if self.answer_weight(params) else ()
        return ("token_accuracy", "rewards/margins", "rewards/accuracies", *answers, "entropy", *own)

    def refusals(self, params: RlhfParams) -> list[Refusal]:
        return [*self._of_loss(params), *(of_reference(params, self.name) if self.compares else ())]

    def _of_loss(self, params: RlhfParams) -> Iterator[Refusal]:
        chosen = self.loss_type(params)
        if chosen not in self.losses:
            yield "loss_type", not_supported(chosen, self.losses)
            return
        if params.beta == 0 and chosen in ("ipo", "sppo_hard"):
            yield "beta", f"the loss {chosen} divides by it: choose more than 0"
        if params.label_smoothing and chosen not in self.smoothed:
            yield "label_smoothing", f"the loss {chosen} does not read it: leave it out"
        if params.label_smoothing == 0.5:
            yield "label_smoothing", "at 0.5 no preference means anything: choose less"
        if chosen == "exo_pair" and not params.label_smoothing:
            yield "label_smoothing", "the loss exo_pair needs more than 0: 0.001 suits it"

    def trainer(self, job: "Training[RlhfParams]") -> Any:
        from training.losses.pairs import Weights
        from training.trainers.pairs import PairLoss, PairsTrainer

        params = job.params
        weights = Weights(self.beta(params), params.label_smoothing, params.simpo_gamma)
        loss = PairLoss(
            name=self.loss_type(params),
            weights=weights,
            compares=self.compares,
            answer_weight=self.answer_weight(params),
            with_prompts=self.name == "orpo",
            of_tokens=self.name in ("orpo", "simpo"),
        )
        return PairsTrainer(job, loss)


def of_reference(params: RlhfParams, method: str) -> Iterator[Refusal]:
    """What does not go together with a reference model."""
    for name in sorted(params.model_fields_set):
        if name.endswith("_dropout") and getattr(params, name):
            yield name, f"{method} compares with a reference, and trains without dropout: leave it out"
    for name in ("ref_model_type", "ref_model_revision"):
        if getattr(params, name) is not None and params.ref_model is None:
            yield name, "it belongs to ref_model, which is not given"
    if params.precompute_ref_log_probs and params.streaming:
        yield "precompute_ref_log_probs", "streamed data is read only while it is learned: leave it out"
