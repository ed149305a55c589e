"""Supervised fine-tuning: examples of conversations, of which the answers are learned."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from engines.errors import InvalidRequest
from training.data.loss_scale import load_loss_scale
from training.data.samples import Learns
from training.methods.base import Method
from training.params.choices import TOKEN_LOSSES
from training.params.refusal import Refusal, given
from training.params.sft import SftParams

if TYPE_CHECKING:
    from training.trainers.job.job import Training


GENERATION = (
    "max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "stop_words",
)  # fmt: skip
"""What an evaluation by what the model writes reads."""
SAMPLED = ("top_k", "top_p")


class Sft(Method[SftParams]):
    name = "sft"
    task = "sft"
    params = SftParams
    choice: ClassVar[Mapping[str, Any]] = {"task_type": "causal_lm"}
    rows: Learns = "answers"
    divisible = True
    reads = frozenset(
        {
            "packing", "lazy_tokenize", "padding_side", "acc_strategy", "loss_scale", "predict_with_generate",
            *GENERATION, "average_tokens_across_devices", "loss_type", "metric",
        }
    )  # fmt: skip
    openai_name: ClassVar[str | None] = "supervised"

    def metrics(self, params: SftParams) -> tuple[str, ...]:
        accuracy = "sequence_accuracy" if params.acc_strategy == "seq" else "token_accuracy"
        written = ("rouge-1", "rouge-2", "rouge-l", "bleu-4") if params.predict_with_generate else ()
        return (accuracy, *written, *([params.metric] if params.metric else []))

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = []
        if not params.predict_with_generate:
            for name in sorted(self.reads.intersection(GENERATION) & params.model_fields_set):
                found.append((name, "predict_with_generate is what writes text here: set it to true"))
        elif not params.temperature:
            found += [
                (name, "with temperature 0 no token is drawn: set temperature") for name in given(params, SAMPLED)
            ]
        if params.predict_with_generate and params.loss_scale == "all":
            found.append(("predict_with_generate", "with loss_scale all, no prompt is told from its answer"))
        try:
            load_loss_scale(params.loss_scale)
        except InvalidRequest as error:
            found.append(("loss_scale", error.message))
        if params.packing and params.lazy_tokenize:
            found.append(("lazy_tokenize", "packing needs the lengths of all samples before training"))
        return found + _unregistered(params, self.reads)

    def trainer(self, job: "Training[SftParams]") -> Any:
        from training.trainers.batches.collate import Packed, Padded, runs_flash_attention
        from training.trainers.supervised import SupervisedTrainer

        pad = job.tokenizer.pad_token_id
        flash = runs_flash_attention(job.tuned.model)
        collator = Packed(pad, flash) if job.params.packing else Padded(pad, job.params.padding_side)
        return SupervisedTrainer(job, data_collator=collator)


def _unregistered(params: SftParams, reads: frozenset[str]) -> list[Refusal]:
    """Names that no file is there to register. Where there is one, the worker runs it and looks."""
    found = []
    if params.loss_type not in (None, *TOKEN_LOSSES) and not params.custom_register_path:
        choices = f"choose {' or '.join(TOKEN_LOSSES)}, or name the file that registers it by custom_register_path"
        found.append(("loss_type", f"{params.loss_type} is not known; {choices}"))
    if params.metric is None or "metric" not in reads:
        return found
    if not params.predict_with_generate:
        found.append(("metric", "it is of what the model writes: set predict_with_generate to true"))
    elif not params.custom_register_path:
        found.append(("metric", "no file registers it: name the file by custom_register_path"))
    return found
