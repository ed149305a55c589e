"""Measure a model by benchmarks: in this process, or behind a server."""

from pathlib import Path

from engines.errors import InvalidRequest
from training.evaluation import results
from training.evaluation.asking import Model
from training.evaluation.harness import measure, require_harness
from training.evaluation.tasks import read_tasks
from training.folder import Result
from training.params.eval import EvalParams
from training.report import Report, Stopped

OUTPUT = "evaluation"
"""The folder of what was found, within the job's."""
PARTS = 10
"""Times at which a benchmark says how far it is."""


def run(params: EvalParams, report: Report) -> Result:
    """Raises TuneserveError, Stopped."""
    require_harness()
    names, files = read_tasks(params.eval_dataset, allow_code=not report.discreet, few_shot=params.eval_few_shot or 0)
    if names and report.discreet:
        raise InvalidRequest(f"name a file of rows, not {names[0]!r}", param="eval_dataset")
    other = None if params.compare is None else results.read(Path(params.compare).expanduser())
    model = _model(params, report)
    try:
        found = measure(
            model,
            names,
            files,
            limit=params.eval_limit,
            few_shot=params.eval_few_shot,
            chat=params.eval_chat,
            temperature=params.temperature,
            seed=params.seed,
        )
    finally:
        model.close()
    measured = results.measured_by_harness(_name(params), found, _settings(params))
    differences = [] if other is None else results.differences(measured, other, seed=params.seed)
    results.write(measured, differences, report.folder.path / OUTPUT)
    report.message(results.table(measured, differences))
    return Result(status="succeeded", artifact=OUTPUT, kind="scores", metrics=measured.metrics())


def _model(params: EvalParams, report: Report) -> Model:
    def checkpoint() -> None:
        if report.stop_requested:
            raise Stopped

    def told(done: int, of: int) -> None:
        if done * PARTS // of > (done - 1) * PARTS // of:
            report.message(f"{done} of {of} questions.")

    if params.eval_url is not None:
        from training.evaluation.over_http import ServerModel

        return ServerModel(params, told, checkpoint)
    from training.evaluation.in_process import EngineModel

    report.message(f"Loading {Path(params.model or '').name}.")
    return EngineModel(params, told, checkpoint)


def _name(params: EvalParams) -> str:
    named = [Path(text.rpartition("=")[2]).name for text in params.adapters]
    return "+".join([Path(params.model or params.eval_url or "").name, *named])


def _settings(params: EvalParams) -> dict[str, object]:
    """What scores depend on, without folders of this machine."""
    names = ("eval_limit", "eval_few_shot", "eval_chat", "temperature", "seed", "torch_dtype")
    return {
        "eval_dataset": [Path(text).name for text in params.eval_dataset],
        **{name: getattr(params, name) for name in names},
    }
