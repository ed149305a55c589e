"""Training by any method: what all of them have in common, in the order in which it is done."""

from typing import Any

from transformers import set_seed

from training.arguments import trainer_arguments
from training.beginning import with_beginning
from training.data import build
from training.folder import Result
from training.load_args import with_saved_args
from training.methods import method_of
from training.methods.base import Method
from training.model import load_for_training, load_tokenizer_for, with_template
from training.params.sft import SftParams
from training.report import Report
from training.saved_args import write_args
from training.trainers.job import Training, train
from training.tuners import tuner_of


def run(params: SftParams, report: Report) -> Result:
    """Raises TuneserveError, Stopped, and what the libraries raise."""
    params = with_template(with_beginning(with_saved_args(params)))
    write_args(params, report.folder.path)
    return train_with(method_of(params), params, report)


def train_with(method: Method[Any], params: SftParams, report: Report) -> Result:
    set_seed(params.seed)
    tokenizer = load_tokenizer_for(params)
    data = build(params, tokenizer, learns=method.rows)
    for note in data.notes:
        report.message(note, level="warn")
    report.message("Loading the model.")
    tuned = tuner_of(params).attach(load_for_training(params), params)
    write_args(params, report.folder.path, tuned.model)
    arguments = trainer_arguments(
        params, report.folder.path, dtype=tuned.model.dtype, evaluates=data.evaluation is not None
    )
    training = Training(params=params, report=report, tuned=tuned, tokenizer=tokenizer, data=data, arguments=arguments)
    result = train(method.trainer(training))
    for note in data.notes_later():
        report.message(note, level="warn")
    return result
