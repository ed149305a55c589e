"""Which repositories of the Hugging Face hub jobs of the API may read (`job_hub`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from engines.errors import InvalidRequest
from training.params.hub import Fetch, names_on_hub
from training.params.task import Task

OFF, ON = "off", "on"
KINDS = {"data": "datasets", "model": "models", "adapter": "models"}
"""What a parameter names -> how the hub calls such repositories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHub:
    allowed: Sequence[str] = (OFF,)
    """OFF or ON, or patterns of repository ids."""
    cache: Path
    max_bytes: int

    def check(self, param: str, id: str, kind: str) -> None:
        """Raises InvalidRequest for a repository that jobs may not read."""
        if ON in self.allowed or any(_matches(pattern, id, KINDS[kind]) for pattern in self.allowed):
            return
        if OFF in self.allowed:
            why = "jobs of this server do not read the hub: it was started without job_hub"
        else:
            why = f"of the hub, jobs of this server read only {', '.join(self.allowed)} (job_hub)"
        raise InvalidRequest(f"parameters.{param}: {id[:100]!r} is not read: {why}.", param=f"parameters.{param}")

    def order(self, task: Task, folder: Path) -> Fetch | None:
        """The order to fetch what a job names on the hub into `folder`; None where it names nothing.

        Raises InvalidRequest: what was allowed when the job was created may not be so any more.
        """
        names = list(names_on_hub(task.params))
        for param, kind, name in names:
            self.check(param, id_in(name), kind)
        return Fetch(folder=folder, cache=self.cache, max_bytes=self.max_bytes) if names else None


def id_in(name: str) -> str:
    """The repository in `org/set:en#500`."""
    return name.partition("#")[0].partition(":")[0]


def _matches(pattern: str, id: str, kind: str) -> bool:
    """`*` and `?` stand for what is within one part of an id; `datasets/` or `models/` before it is for one kind."""
    return any(_alike(pattern.split("/"), name.split("/")) for name in (id, f"{kind}/{id}"))


def _alike(pattern: Sequence[str], name: Sequence[str]) -> bool:
    return len(pattern) == len(name) and all(map(fnmatchcase, name, pattern))
