"""Training by any method: what all of them have in common, in the order in which it is done."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from engines.checkpoint.quantization import quantized_by, stays_quantized
from engines.errors import UnsupportedModel
from training.data import build
from training.data.digest import Rows, rows_of
from training.data.prepare import Datasets, longest
from training.folder import Result
from training.hub.compare import check_files
from training.hub.upload import Uploads, open_repository
from training.imports import left_out
from training.memory.estimate import estimate
from training.memory.lengths import LOOKED_AT, Lengths, lengths_of
from training.methods import method_of
from training.methods.base import Method
from training.params.saved_args import ROWS, read_args
from training.params.sft import SftParams
from training.pipelines.beginning import with_beginning
from training.pipelines.load_args import with_saved_args
from training.pipelines.registered import check_registered
from training.processes import Processes
from training.report import Report
from training.trainers.batches.examples import DataExamples
from training.trainers.job.arguments import trainer_arguments
from training.trainers.job.job import Training, train
from training.trainers.job.reporters import check_reporters
from training.trainers.job.write_args import write_args
from training.trainers.model import (
    check_type,
    load_base_config,
    load_for_training,
    load_tokenizer_for,
    with_head,
    with_template,
)
from training.trainers.weights.divided import keep_packed_apart, loads_divided
from training.trainers.weights.liger import apply_liger, check_liger
from training.trainers.weights.precision import Precision, hold, precision_of
from training.trainers.weights.tensor import check_layers
from training.tuners import tuner_of
from training.tuners.base import Tuned

PURE = (
    "Weights learn in bfloat16: an update that is less than about 1/256 of its weight is lost. Without bf16 false and "
    "lora_dtype they learn in float32."
)


def run(params: SftParams, report: Report) -> Result:
    """Raises TuneserveError, Stopped, and what the libraries raise."""
    params = with_template(with_beginning(with_saved_args(params)))
    check_registered(params)
    write_args(params, report.folder.path)
    with nullcontext() if params.deepspeed is not None else left_out("deepspeed"):
        return train_with(method_of(params), params, report)


def train_with(method: Method[Any], params: SftParams, report: Report) -> Result:
    set_seed(params.seed)
    uploads = _uploads(params, report)
    if not (params.dry_run or Processes.of_environment().rank):
        check_reporters(params)
    check_liger(params)
    config = load_base_config(params)
    check_type(params, config)
    check_files(params, report)
    params = params.model_copy(update={"task_type": method.task_type})
    if method.task_type == "seq_cls":
        params = with_head(params, config, method.num_labels)
    tuner_of(params).check_config(params, config)
    _check_quantized(params, config)
    precision = precision_of(params, config)
    check_layers(params, config, precision)
    tokenizer = load_tokenizer_for(params, learns=method.rows)
    data = build(params, tokenizer, learns=method.rows)
    for note in data.notes:
        report.message(note, level="warn")
    if params.dry_run:
        return Result(status="succeeded", memory=estimate(params, config, _lengths(params, method, data, tokenizer)))
    rows = rows_of(data.train)
    if (other := _other_rows(params, rows)) is not None:
        report.message(other, level="warn")
    arguments = trainer_arguments(
        params, report.folder.path, precision=precision, evaluates=data.evaluation is not None
    )
    report.message("Loading the model.")
    shown = data.train.of_all() if params.streaming else data.train
    examples = DataExamples(shown, method.rows, tokenizer.pad_token_id)
    with loads_divided(params, arguments, precision):
        tuned = _tuned(params, config, precision, report, examples)
    if params.use_liger:
        apply_liger(tuned.model)
    write_args(params, report.folder.path, tuned.model)
    training = Training(
        params=params,
        report=report,
        tuned=tuned,
        precision=precision,
        tokenizer=tokenizer,
        data=data,
        arguments=arguments,
        rows=rows,
        uploads=uploads,
    )
    result = train(method.trainer(training))
    for note in data.notes_later():
        report.message(note, level="warn")
    return result


def _other_rows(params: SftParams, rows: Rows | None) -> str | None:
    """What the user should know where a training goes on with other rows than those that it began with."""
    checkpoint = Path(params.resume_from_checkpoint or "").expanduser()
    before = read_args(checkpoint).get(ROWS) if params.resume_from_checkpoint else None
    if rows is None or not isinstance(before, list) or before == list(rows):
        return None
    return (
        f"{checkpoint.name} has learned from other rows ({before[0]} samples, and {rows.samples} now): the training "
        "goes on at the same place of these."
    )


def _uploads(params: SftParams, report: Report) -> Uploads | None:
    """In the first of several processes. Raises InvalidRequest, before anything is loaded."""
    if not params.push_to_hub or Processes.of_environment().rank:
        return None
    return Uploads(open_repository(params, report.folder.path.name), report)


def _check_quantized(params: SftParams, config: Any) -> None:
    """Raises UnsupportedModel for a checkpoint that is quantised already, on which the tuner does not learn."""
    method, tuner = stays_quantized(config), tuner_of(params)
    if method is None or tuner.name == "lora" or {"bitsandbytes": "bnb"}.get(method, method) in tuner.quantized_bases:
        return
    message = f"the model is quantised ({method}), and train_type {tuner.name} does not learn on it: choose lora, or"
    raise UnsupportedModel(f"{message} the model that it was quantised from", param="train_type")


def _check_trainable(model: Any) -> None:
    """Raises UnsupportedModel for weights of a kind that transformers trains nothing on."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not quantizer.is_trainable:
        method = quantized_by(model.config)
        message = f"transformers trains nothing on a model of {method}: train on the one that it was quantised from"
        raise UnsupportedModel(message, param="model")


def _tuned(params: SftParams, config: Any, precision: Precision, report: Report, examples: DataExamples) -> Tuned:
    """The model with what is trained of it, in the types to train in."""
    tuner = tuner_of(params)
    model = load_for_training(params, config, precision.base if tuner.makes == "adapter" else precision.saved)
    _check_trainable(model)
    if params.task_type == "seq_cls":  # said now: an embedding that is loaded with a token to pad with never learns it
        model.config.get_text_config().pad_token_id = examples.pad_token_id
    tuned = tuner.attach(model, params, examples)
    hold(tuned.model, precision)
    keep_packed_apart(tuned.model)
    if any(weight.requires_grad and weight.dtype == torch.bfloat16 for weight in tuned.model.parameters()):
        report.message(PURE, level="warn")
    return tuned


def _lengths(params: SftParams, method: Method[Any], data: Datasets, tokenizer: Any) -> Lengths:
    """Those of the data; of a stream, which is not read before training, the longest that it may have."""
    if params.streaming:
        most = longest(params, tokenizer) or 0
        return Lengths(most, most, most, rows=LOOKED_AT, different=most, different_learned=most)
    return lengths_of(data.train, method.rows, drawn=method.beside(params).drawn_tokens)
