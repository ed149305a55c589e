"""`tuneserve sft|pt|rlhf|merge|eval`: make a job's folder, run it in the foreground, say what came of it."""

import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.adapters.source import whole_path
from engines.checkpoint.gguf.named import name_of
from engines.errors import TuneserveError
from engines.params.about import facts
from engines.params.secrets import secrets_of
from server.commands.foreground import Ended, end_of_log, run_here
from server.commands.output_folder import new_eval_folder, new_training_folder
from server.commands.progress import Progress, progress_on
from server.jobs.worker_process import missing_for_training
from training.folder import JobFolder
from training.machines import Machines
from training.params.sft import SftParams
from training.params.task import EvalTask, Task


def run(task: Task) -> int:
    """Do what `task` says; return the exit status: 0, 1 where it failed, 128 and the signal's number where one came."""
    progress = progress_on(sys.stdout)
    if reason := missing_for_training():
        return failed(task, reason, None)
    try:
        if isinstance(task, EvalTask):
            return _measure(task, progress)
        if task.training is None:
            return _make(task, progress)
        if task.training.dry_run:
            return _estimate(task, task.training, progress)
        return _train(task, task.training, progress)
    except TuneserveError as error:
        return failed(task, error.message, error.param)
    except OSError as error:
        return failed(task, f"{error.filename or 'its folder'}: {error.strerror}", "output_dir")


def _train(task: Task, params: SftParams, progress: Progress) -> int:
    processes, machines = processes_of_environment(), Machines.of_environment(os.environ)
    folder = JobFolder(new_training_folder(params))
    folder.write_task(task.model_copy(update={"params": _anywhere(params)}))
    progress.say(f"Results go to {folder.path}.")
    ended = run_here(folder, progress, secrets=secrets_of(params), processes=processes, machines=machines)
    if ended.result is None or ended.result.status == "failed":
        return died(task, folder, ended)
    if ended.result.status == "stopped":
        last = [f"checkpoint-{step}" for step in folder.checkpoints()[-1:]]
        hint = f"; go on with --resume_from_checkpoint {folder.path / last[0]}" if last else ""
        progress.say(f"Stopped after step {ended.result.final_step or 0}{hint}.")
        return 128 + (ended.signal or signal.SIGTERM)
    assert ended.result.artifact, "what succeeded has made something"
    if machines.rank > 0 and not params.save_on_each_node:
        progress.say("Done: the first machine has what was made.")
        return 0
    progress.say(_how_to_serve(folder.path / ended.result.artifact, params.model))
    return 0


def _estimate(task: Task, params: SftParams, progress: Progress) -> int:
    """Say what a training would take. Nothing stays of it."""
    with tempfile.TemporaryDirectory(prefix="tuneserve-") as path:
        folder = JobFolder(Path(path))
        folder.write_task(task.model_copy(update={"params": _anywhere(params)}))
        ended = run_here(folder, progress, secrets=secrets_of(params))
        if ended.result is None or ended.result.status == "failed":
            return died(task, folder, ended)
    if ended.result.status == "stopped" or ended.result.memory is None:
        return 128 + (ended.signal or signal.SIGTERM)
    progress.tell(ended.result.memory)
    return 0 if ended.result.memory.fits else 1


def _anywhere(params: SftParams) -> SftParams:
    """`params` in which what was trained before has its whole path: a folder is to mean the same wherever it is run
    from, and its checkpoints are to find what training began with."""
    said = dict(facts(type(params)))
    changes: dict[str, Any] = {}
    for name in params.model_fields_set:
        match said[name].names, getattr(params, name):
            case "checkpoint", str(text) if text:
                changes[name] = str(Path(text).expanduser().resolve())
            case "model", str(text):
                changes[name] = whole_path(text)
            case "adapter", texts:
                changes[name] = tuple(map(whole_path, texts))
    return params.model_copy(update=changes)


def _make(task: Task, progress: Progress) -> int:
    target = task.target()
    target.parent.mkdir(parents=True, exist_ok=True)
    made = _whole(task, progress, target.parent, f".{target.name}.", lambda: target)
    if isinstance(made, Path):
        progress.say(_how_to_serve(made, None))
        return 0
    return made


def _measure(task: EvalTask, progress: Progress) -> int:
    """Scores and answers go to a folder of their own."""
    output = Path(task.params.eval_output_dir).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    name = name_of(task.params.model or "server")
    made = _whole(task, progress, output, ".running.", lambda: new_eval_folder(output, name))
    if isinstance(made, Path):
        progress.say(f"Scores, answers, a table and a plot are in {made}.")
        return 0
    return made


def _whole(task: Task, progress: Progress, beside: Path, prefix: str, target: Callable[[], Path]) -> Path | int:
    """Run `task` in a folder `beside` its `target`: what comes of it is there as a whole, and nothing else stays.
    Returns where it is, or the exit status of a run that made nothing."""
    folder = JobFolder(Path(tempfile.mkdtemp(prefix=prefix, dir=beside)))
    try:
        folder.write_task(task)
        ended = run_here(folder, progress, secrets=secrets_of(task.params))
        if ended.result is None or ended.result.status == "failed":
            return died(task, folder, ended)
        if ended.result.status == "stopped":
            progress.say("Stopped: nothing was written.")
            return 128 + (ended.signal or signal.SIGTERM)
        assert ended.result.artifact, "what succeeded has made something"
        return (folder.path / ended.result.artifact).rename(target())
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)


def processes_of_environment() -> int:
    """Number of worker processes on this machine, by the reference's variable NPROC_PER_NODE. Raises TuneserveError."""
    given = os.environ.get("NPROC_PER_NODE", "1")
    if not given.isdecimal() or int(given) < 1:
        raise TuneserveError(f"NPROC_PER_NODE is the number of processes, one for each GPU, not {given!r}")
    return int(given)


def _how_to_serve(made: Path, model: str | None) -> str:
    path = shlex.quote(str(made))
    config = made / "adapter_config.json"
    if files := sorted(made.glob("*.gguf")):
        return _how_to_use_gguf(made, files)
    if not config.exists():
        return f"The model is in {made}. Serve it: tuneserve deploy --model {path}"
    adapter = json.loads(config.read_bytes())
    unserved = adapter.get("use_dora") or adapter.get("target_parameters") or adapter.get("bias") != "none"
    if adapter["peft_type"] != "LORA" or unserved:
        return f"The adapter is in {made}. Merge it into its model, to serve that: tuneserve merge --adapters {path}"
    base = shlex.quote(model or adapter["base_model_name_or_path"])
    return f"The adapter is in {made}. Serve it: tuneserve deploy --model {base} --adapters {path}"


def _how_to_use_gguf(made: Path, files: list[Path]) -> str:
    if (made / "Modelfile").exists():
        name = shlex.quote(made.name.lower())
        return f"The files are in {made}. ollama create {name} --file {shlex.quote(str(made / 'Modelfile'))}"
    path = shlex.quote(str(files[0]))
    if files[0].name == "adapter.gguf":
        return f"The file is {files[0]}. Serve it beside its model's: llama-server --model ... --lora {path}"
    return f"The file is {files[0]}. Serve it: tuneserve deploy --model {path}"


def died(task: Task, folder: JobFolder, ended: Ended) -> int:
    """Tell why: in the worker's words, or by the end of what its libraries said."""
    if ended.result is not None:
        assert ended.result.error is not None, "what failed says why"
        return failed(task, ended.result.error.message, ended.result.error.param)
    if ended.signal is not None:
        sys.stderr.write(f"tuneserve {task.task}: ended at once, nothing was kept.\n")
        return 128 + ended.signal
    killed = ended.status == -signal.SIGKILL
    reason = "was killed, as it is where memory runs out" if killed else f"ended with status {ended.status}"
    return failed(task, f"the worker process {reason}. The end of its log:\n{end_of_log(folder.path)}", None)


def failed(task: Task, message: str, param: str | None) -> int:
    label = f"--{param}: " if param in type(task.params).model_fields else ""
    sys.stderr.write(f"tuneserve {task.task}: failed: {label}{message}\n")
    return 1
