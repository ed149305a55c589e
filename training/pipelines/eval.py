"""Measure a model by benchmarks: on an engine of its own, or behind a server; and perhaps another beside it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from engines.checkpoint.gguf.named import name_of
from engines.errors import InvalidRequest
from engines.setup.install import require_evalscope
from training.evaluation import results
from training.evaluation.asking import Model
from training.evaluation.evalscope import found
from training.evaluation.evalscope import run as evalscope
from training.evaluation.evalscope.benchmarks import read_benchmarks
from training.evaluation.harness import find_tasks, measure, require_harness
from training.evaluation.results import Measured
from training.evaluation.served import Served, served
from training.evaluation.tasks import read_tasks
from training.folder import Result
from training.params.eval import BASE, EvalParams
from training.processes import Processes
from training.report import Report, Stopped

OUTPUT = "evaluation"
"""The folder of what was found, within the job's."""
PARTS = 10
"""Times at which a benchmark says how far it is."""


def run(params: EvalParams, report: Report) -> Result:
    """Raises TuneserveError, Stopped."""
    if Processes.of_environment().count > 1:
        raise InvalidRequest("an evaluation is the work of one process: ask for one device", param="devices")
    by: _ByEvalScope | _ByHarness
    by = _ByEvalScope(params, report) if params.eval_backend == "evalscope" else _ByHarness(params, report)
    other = _compared(params, discreet=report.discreet)
    measured = by.measured(params)
    beside = by.measured(other) if isinstance(other, EvalParams) else None
    earlier = other if isinstance(other, Measured) else beside
    differences = [] if earlier is None else results.differences(measured, earlier, seed=params.seed)
    results.write(measured, differences, report.folder.path / OUTPUT, compared=beside)
    report.message(results.table(measured, differences))
    compared = {f"{each.task}/{each.metric}_{name}": value for each in differences for name, value in each.metrics()}
    return Result(status="succeeded", artifact=OUTPUT, kind="scores", metrics=measured.metrics() | compared)


def _compared(params: EvalParams, *, discreet: bool) -> Measured | EvalParams | None:
    """What was found of the other model earlier, or how to measure it now. Raises InvalidRequest."""
    name = params.compare
    if name is None:
        return None
    if params.eval_url is None and name == BASE:
        return params.model_copy(update={"adapters": ()})
    if discreet:
        raise InvalidRequest(f"a job compares with {BASE!r} alone", param="compare")
    folder = Path(name).expanduser()
    if (folder / results.RESULTS).is_file():
        return results.read(folder)
    if params.eval_url is not None:
        return params.model_copy(update={"model": name})
    if (folder / "adapter_config.json").is_file():
        return params.model_copy(update={"adapters": (name,)})
    _check_model(name, folder)
    return params.model_copy(update={"model": name, "adapters": (), "model_revision": None})


def _check_model(name: str, folder: Path) -> None:
    """Raises InvalidRequest for what is plainly no model: before the first one is measured."""
    if folder.is_dir() and not (folder / "config.json").is_file():
        message = f"{name!r} holds neither an evaluation nor an adapter nor a model"
        raise InvalidRequest(message, param="compare")
    if not folder.exists() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise InvalidRequest(f"there is no {name!r}", param="compare")


class _ByHarness:
    """lm-evaluation-harness asks and scores."""

    def __init__(self, params: EvalParams, report: Report) -> None:
        require_harness()
        shown = params.eval_few_shot or 0
        self._names, self._files = read_tasks(params.eval_dataset, allow_code=not report.discreet, few_shot=shown)
        _only_files(self._names, report)
        self._manager = find_tasks(self._names, self._files)
        self._report = report

    def measured(self, params: EvalParams) -> Measured:
        model = _model(params, self._report)
        try:
            scores = measure(
                model,
                self._names,
                self._files,
                self._manager,
                limit=params.eval_limit,
                few_shot=params.eval_few_shot,
                chat=params.eval_chat,
                temperature=params.temperature,
                seed=params.seed,
            )
        finally:
            model.close()
        return results.measured_by_harness(_name(params), scores, _settings(params))


class _ByEvalScope:
    """EvalScope does, and asks a server."""

    def __init__(self, params: EvalParams, report: Report) -> None:
        require_evalscope()
        self._benchmarks = read_benchmarks(params.eval_dataset)
        _only_files([each.name for each in self._benchmarks if each.rows is None], report)
        if params.eval_few_shot and any(each.rows is not None for each in self._benchmarks):
            raise InvalidRequest("EvalScope shows no examples before rows of a file", param="eval_few_shot")
        self._report = report

    def measured(self, params: EvalParams) -> Measured:
        checkpoint = _checkpoint(self._report)
        with self._server(params, checkpoint) as server:
            self._report.message(f"EvalScope asks {server.model}.")
            parts = evalscope.measure(server, self._benchmarks, params, self._report.folder.path, checkpoint)
        for each, part in zip(self._benchmarks, parts, strict=True):
            for metric, why in part.unmeasured.items():
                self._report.message(f"{each.name}: EvalScope could not measure {metric}: {why}", level="warn")
        return found.measured(_name(params), self._benchmarks, parts, _settings(params))

    def _server(self, params: EvalParams, checkpoint: Callable[[], None]) -> AbstractContextManager[Served]:
        if params.eval_url is None:
            self._report.message(f"Loading {name_of(params.model or '')}.")
            return served(params, checkpoint)
        from training.evaluation.over_http import find_model

        return nullcontext(Served(params.eval_url.rstrip("/"), params.eval_api_key, find_model(params)[0]))


def _only_files(names: Sequence[str], report: Report) -> None:
    """A job of the API fetches no benchmark. Raises InvalidRequest."""
    if names and report.discreet:
        raise InvalidRequest(f"name a file of rows, not {names[0]!r}", param="eval_dataset")


def _checkpoint(report: Report) -> Callable[[], None]:
    def checkpoint() -> None:
        if report.stop_requested:
            raise Stopped

    return checkpoint


def _model(params: EvalParams, report: Report) -> Model:
    def told(done: int, of: int) -> None:
        if done * PARTS // of > (done - 1) * PARTS // of:
            report.message(f"{done} of {of} questions.")

    if params.eval_url is not None:
        from training.evaluation.over_http import ServerModel

        return ServerModel(params, told, _checkpoint(report))
    from training.evaluation.on_engine import EngineModel

    report.message(f"Loading {name_of(params.model or '')}.")
    return EngineModel(params, told, _checkpoint(report))


def _name(params: EvalParams) -> str:
    named = [Path(text.rpartition("=")[2]).name for text in params.adapters]
    return "+".join([name_of(params.model or params.eval_url or ""), *named])


def _settings(params: EvalParams) -> dict[str, object]:
    """What scores depend on, without folders of this machine."""
    names = ("eval_backend", "eval_limit", "eval_few_shot", "eval_chat", "temperature", "seed", "torch_dtype")
    return {
        "eval_dataset": [Path(text).name for text in params.eval_dataset],
        **{name: getattr(params, name) for name in names},
        **({} if params.eval_url else {"infer_backend": params.infer_backend}),
    }
