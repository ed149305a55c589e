"""The body of POST /v1/jobs: a command with its parameters, but for what a client may not choose."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from engines.errors import InvalidRequest, UnsupportedParameter
from server.http.body import RequestBody
from server.http.validation import MISSING, to_invalid_request
from training.params.honoured import refusals
from training.params.task import TASK, MergeTask, Task

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]

A_FILE = "it names files or code of the server's machine"
THE_SERVER = "the server says so itself, for all jobs"
CHOSEN_HERE: dict[str, str] = {
    **dict.fromkeys(("custom_register_path", "custom_dataset_info", "local_repo_path", "deepspeed"), A_FILE),
    **dict.fromkeys(("output_dir", "add_version", "hub_token", "push_to_hub", "hub_model_id"), THE_SERVER),
    **dict.fromkeys(("hub_private_repo", "ddp_backend", "save_on_each_node", "device_map"), THE_SERVER),
    "load_data_args": "name the data in the request",
}
"""Parameters that no client may choose, and why."""
REPORTS = frozenset({"tensorboard", "none"})
PROCESSES = ("dataset_num_proc", "dataloader_num_workers")


class JobBody(RequestBody):
    type: Literal["sft", "pt", "rlhf", "merge", "export", "infer", "eval"]
    parameters: dict[str, Any]
    """Those of the command line's command of this name."""
    priority: int = Field(0, ge=-100, le=100)
    """Of two jobs that wait, the one with the higher number runs first."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    devices: int | None = Field(None, ge=0, le=64)
    """GPUs to run on; 0: the CPU. One where there is one, unless given."""

    def task(self) -> Task:
        """With the names that the client knows things by. Raises InvalidRequest, whose `param` is `parameters.NAME`."""
        if self.type in ("export", "infer", "eval"):
            raise UnsupportedParameter(f"Jobs of the type {self.type!r} are not built yet.", param="type")
        for name in self.parameters:
            if name in CHOSEN_HERE:
                raise _refused(name, f"cannot be chosen: {CHOSEN_HERE[name]}")
        task = parse(self.type, self.parameters)
        _check(task)
        return task


def parse(type: str, parameters: Mapping[str, Any]) -> Task:
    try:
        return TASK.validate_python({"task": type, "params": dict(parameters)})
    except ValidationError as error:
        # pydantic's places begin with the branch of the union, and with the field `params`
        details = [{**one, "loc": ("parameters", *one["loc"][2:])} for one in error.errors(include_url=False)]
        raise to_invalid_request(details, {"parameters": parameters}) from None


def _check(task: Task) -> None:
    for name, reason in refusals(task):
        raise _refused(name, f"cannot be honoured: {reason}")
    if isinstance(task, MergeTask):
        return
    params = task.params
    goes_on = params.adapters or params.resume_from_checkpoint
    for name in ("model", "dataset"):
        if not getattr(params, name) and not (name == "model" and goes_on):
            where = f"parameters.{name}"
            raise InvalidRequest(f"Missing required parameter: {where!r}.", param=where, code=MISSING)
    if unknown := set(params.report_to) - REPORTS:
        raise _refused("report_to", f"{min(unknown)!r} is not supported here; choose tensorboard or none")
    most = os.cpu_count() or 1
    for name in PROCESSES:
        if getattr(params, name) > most:
            raise InvalidRequest(
                f"parameters.{name} is {getattr(params, name)}, and here at most {most}.", param=f"parameters.{name}"
            )


def _refused(name: str, reason: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"parameters.{name} {reason}.", param=f"parameters.{name}")
