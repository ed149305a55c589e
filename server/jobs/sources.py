"""What a job of the API may name: the served model, ids on the hub, uploaded files, other jobs, and what lies in
`job_roots`.

Nothing else of this machine is read, and a path that leads elsewhere is refused in the same words whatever is there.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any

from fastapi import Depends

from engines.errors import InvalidRequest, NotFound
from engines.params.about import facts
from engines.params.base import Params
from server.deps import part
from server.files.files import Files, Purpose
from server.jobs.graders import check_offered
from server.jobs.hub import JobHub
from server.jobs.job import Job, JobStatus
from server.jobs.jobs import Jobs
from server.jobs.tidy import STATE
from server.store.access import Access
from training.params.graders import asking, parse_grader
from training.params.hub import SCHEME
from training.params.task import TASKS, Artifact, params_of

DATA = frozenset(name for task in TASKS.values() for name, said in facts(params_of(task)) if said.names == "data")
FILE_ID = re.compile(r"file-[A-Za-z0-9]+")
JOB_ID = re.compile(r"(job|ftjob)-[A-Za-z0-9]+")
SUBSET = re.compile(r"[\w.-]+(/[\w.-]+)*")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FILES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".zst", ".gz", ".safetensors", ".bin", ".gguf")
"""No repository of the hub is called so."""
ADAPTERS_OF = {"model": "adapters", "reward_model": "reward_adapters"}
"""Where the adapter of a model is named that a parameter names."""
TRAINING: tuple[Purpose, ...] = ("fine-tune", "fine-tune-results", "evals")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSource:
    """The served model, as a job finds it."""

    name: str
    """Its name in the API."""
    source: str
    """What it is loaded from, wherever a process is started."""
    revision: str | None


class Sources:
    def __init__(
        self,
        jobs: Jobs,
        files: Files,
        served: ServedSource,
        roots: Iterable[str],
        hub: JobHub,
        *,
        state: Path,
        runs_python: bool,
    ) -> None:
        """`state`: the server's `state_dir`, which no job reads by its paths, though it should lie in a root.
        `runs_python`: whether graders may bring code of Python's."""
        self._jobs = jobs
        self._files = files
        self._served = served
        self._hub = hub
        self._roots = tuple(Path(root).expanduser().resolve() for root in roots)
        self._state = state.resolve()
        self._runs_python = runs_python

    async def resolve(
        self, kind: type[Params], given: Mapping[str, Any], job_id: str, access: Access
    ) -> dict[str, Any]:
        """`given`, parameters of `kind`, with real folders and files in place of names; what was uploaded is in the
        job's own folder then. Files and jobs that `access` does not cover are not there.

        Raises InvalidRequest and NotFound, whose `param` is `parameters.NAME`; StorageFull.
        """
        params = dict(given)
        for name, said in facts(kind):
            match said.names if params.get(name) else None:
                case "model":
                    params |= await self._model(name, params[name], params, access)
                case "data":
                    params[name] = [await self._data(name, each, job_id, access) for each in params[name]]
                case "adapter":
                    params[name] = [await self._named(name, each, "adapter", access) for each in params[name]]
                case "checkpoint":
                    whole = not params.get("resume_only_model")
                    params[name] = await self._checkpoint(name, params[name], access, whole=whole)
        if params.get("grader") and params.get("model"):
            params["grader"] = asking(params["grader"], Path(params["model"]).name)
        return params

    def check_grader(self, params: Params) -> None:
        """Raises InvalidRequest for one that could not run here. It may be that of a checkpoint which the job goes on
        from."""
        if grader := getattr(params, "grader", None):
            check_offered(parse_grader(grader), runs_python=self._runs_python, param="parameters.grader")

    async def _model(self, param: str, name: str, given: Mapping[str, Any], access: Access) -> dict[str, Any]:
        if name != self._served.name and not (name == self._served.source and HUB_ID.fullmatch(name)):
            return {param: await self._named(param, name, "model", access)}
        found: dict[str, Any] = {param: self._served.source}
        revision, own = f"{param}_revision", self._served.revision
        if given.get(revision) not in (None, own) and not Path(self._served.source).exists():
            raise _refused(revision, f"of the served model only the revision {own or 'of its main branch'} is here")
        return found if own is None else found | {revision: own}

    async def _named(self, param: str, name: str, wanted: Artifact, access: Access) -> str:
        if JOB_ID.fullmatch(name):
            return str(await self._output(param, name, wanted, access))
        return await asyncio.to_thread(self._place, param, name, wanted)

    async def _data(self, param: str, text: str, job_id: str, access: Access) -> str:
        """`#N` at the end, and `:SUBSET` before it, stay as they are: neither can lead anywhere."""
        name, sharp, count = text.partition("#")
        if sharp and not count.isdecimal():
            raise _refused(param, f"after # there must be a number of rows, not {count[:60]!r}")
        if FILE_ID.fullmatch(name):
            return str(await self._copy(param, name, job_id, access)) + sharp + count
        head, colon, subset = name.partition(":")
        if colon and (not SUBSET.fullmatch(subset) or ".." in subset):
            raise _refused(param, f"{subset[:60]!r} is no name of a subset")
        return await asyncio.to_thread(self._place, param, head, "data") + colon + subset + sharp + count

    async def _copy(self, param: str, file_id: str, job_id: str, access: Access) -> Path:
        try:
            file = await self._files.get(file_id, access, TRAINING)
        except NotFound as error:
            raise NotFound(error.message, param=f"parameters.{param}") from None
        ends = [end.lower() for end in PurePath(file.filename).suffixes]
        end = "".join(ends[-2:] if ends[-1:] == [".gz"] else ends[-1:])
        target = self._jobs.folders.data(job_id) / f"{file.id}{end if end.endswith(FILES) else '.jsonl'}"
        if not target.exists():
            await self._files.copy_to(file_id, access, target)
        return target

    async def _job(self, param: str, id: str, access: Access) -> Job:
        try:
            return await self._jobs.store.get(id, access)
        except NotFound as error:
            raise NotFound(error.message, param=f"parameters.{param}") from None

    async def _output(self, param: str, id: str, wanted: Artifact, access: Access) -> Path:
        job = await self._job(param, id, access)
        result = job.job_result()
        if job.status is not JobStatus.SUCCEEDED or result is None or result.artifact is None:
            raise _refused(param, f"the job {id} is {job.status} and has made nothing yet")
        if result.kind != wanted:
            place = ADAPTERS_OF.get(param) if result.kind == "adapter" else None
            advice = f": name it in {place}, beside the model that it adapts" if place else ""
            raise _refused(param, f"the job {id} has made no {wanted}, but a result of kind {result.kind}{advice}")
        return self._jobs.folders.attempt(id, job.attempt) / result.artifact

    async def _checkpoint(self, param: str, name: str, access: Access, *, whole: bool) -> str:
        """`JOB_ID` is that job's last checkpoint; `whole`: not its weights alone are needed."""
        if not JOB_ID.fullmatch(name):
            found = await asyncio.to_thread(self._find, param, name)
            if found is None:
                raise self._outside(param)
            return str(found)
        job = await self._job(param, name, access)
        checkpoint = await asyncio.to_thread(self._jobs.folders.newest_checkpoint, job)
        if checkpoint is None:
            raise _refused(param, f"the job {name} has no checkpoint")
        if whole and not (checkpoint / STATE[0]).is_file():
            reason = "has kept the weights of its checkpoints alone: set resume_only_model, or name it in adapters"
            raise _refused(param, f"the job {name} {reason}")
        return str(checkpoint)

    def _place(self, param: str, name: str, kind: str) -> str:
        """What lies in the roots, or else an id on the hub, to be fetched."""
        may_be_hub_id = bool(HUB_ID.fullmatch(name)) and not name.lower().endswith(FILES) and ".." not in name
        try:
            found = self._find(param, name)
        except NotFound:
            if not may_be_hub_id:
                raise
            found = None
        if found is not None:
            return str(found)
        if not may_be_hub_id:
            raise self._outside(param)
        self._hub.check(param, name, kind)
        return SCHEME + name

    def _find(self, param: str, name: str) -> Path | None:
        """None where it leads out of all roots. Raises NotFound where it lies in one, but is not there."""
        try:
            real = [(root / name).resolve() for root in self._roots]
            inside = [path for path in real if self._may_be_read(path)]
            there = [path for path in inside if path.exists()]
        except (OSError, ValueError, RuntimeError):  # no path at all, one too long, a circle of links, a locked folder
            return None
        if there:
            return there[0]
        if inside:
            raise NotFound(f"parameters.{param}: there is no {name[:100]!r}.", param=f"parameters.{param}")
        return None

    def _may_be_read(self, path: Path) -> bool:
        """What the server keeps is its owners', and a folder that holds it is read with all that is in it."""
        holds_ours = path.is_relative_to(self._state) or self._state.is_relative_to(path)
        return not holds_ours and any(path.is_relative_to(root) for root in self._roots)

    def _outside(self, param: str) -> InvalidRequest:
        where = "under a folder of job_roots" if self._roots else "nowhere: this server was started without job_roots"
        kinds = "an uploaded file, an id on the hub" if param in DATA else "the served model, an id on the hub, a job"
        return _refused(param, f"name {kinds}, or a path, which must lie {where}")


SourcesDep = Annotated[Sources, Depends(part(Sources))]


def _refused(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"parameters.{param}: {reason}.", param=f"parameters.{param}")
