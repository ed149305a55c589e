"""Makes a job of a fine-tuning request, or refuses it: what will not train, or could not be served, is never begun."""

import asyncio
import secrets
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends

from engines.adapters.registry import Lease
from engines.errors import InvalidRequest, NotFound, UnsupportedParameter
from engines.params.deploy import DeployParams
from engines.text.grammar_check import validate
from server.deps import part
from server.files.files import Files
from server.fine_tuning.body import SEEDS, CreateFineTuningJob
from server.fine_tuning.names import model_name
from server.fine_tuning.parameters import check_parameters
from server.fine_tuning.prepare import data_files
from server.fine_tuning.record import FineTuning
from server.fine_tuning.servable import check_servable
from server.fine_tuning.task import AS_SERVED, first_task
from server.fine_tuning.twins import Said, said_once
from server.inference.inference import Inference
from server.jobs.graders import check_offered
from server.jobs.job import Job
from server.jobs.jobs import Jobs
from server.jobs.storage import to_storage_error
from server.jobs.store import message
from server.model.served import ServedModel
from server.store.access import Access
from training.folder import Message
from training.methods import BY_OPENAI_NAME
from training.params.graders import OneGrader
from training.params.response_format import structured_of
from training.params.task import TrainingTask
from training.refusals.supported import refusals
from training.rewards.graders.grading import models_of

GRADER = "method.reinforcement.grader"
RESPONSE_FORMAT = "method.reinforcement.response_format"
EFFORT = "method.reinforcement.hyperparameters.reasoning_effort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Creator:
    model: ServedModel
    served: DeployParams
    """What the model is served with."""
    inference: Inference
    jobs: Jobs
    files: Files

    async def create(self, body: CreateFineTuningJob, access: Access) -> Job:
        """A job that names what `access` covers.

        Raises EngineUnavailable, InvalidRequest, ModelNotFound, NotFound, StorageFull, Conflict.
        """
        self.inference.lifecycle.check_ready()
        # 1. What can be told from the request alone.
        body.check_built()
        with ExitStack() as held:
            leased = await self.inference.lease(body.model, access, held)
            self.inference.check_generates(leased)
            return await self._create(body, leased, access)

    async def _create(self, body: CreateFineTuningJob, model: Lease, access: Access) -> Job:
        """`model`: what training begins with."""
        capabilities = self.inference.engine.capabilities()
        method = BY_OPENAI_NAME[body.method_name]
        params = check_parameters(
            body.parameters,
            method,
            max_model_len=capabilities.max_model_len,
            stretched=self.served.rope_scaling is not None,
        )
        if body.grader is not None:
            check_offered(body.grader, runs_python=self.served.python_graders, param=GRADER)
            self._check_models(body.grader)
        await self._check_response_format(body)
        template_kwargs = self._template_kwargs(body.wanted.reasoning_effort, model)
        said = said_once(body.parameters, params, body.wanted, body.seed)
        if body.validation_file is not None and "split_dataset_ratio" in body.parameters:
            text = "parameters.split_dataset_ratio has no effect beside validation_file: give one of the two."
            raise InvalidRequest(text, param="parameters.split_dataset_ratio")
        async with self.jobs.making("ftjob-") as id:
            # 2. The whole task, as far as it is known without the data.
            record = self._record(id, body, model, said, template_kwargs)
            data = data_files(self.jobs.folders.data(id), record)
            task = first_task(record, data, self.served)
            _check_supported(task)
            check_servable(task.params, capabilities.adapters)
            # 3. The files, and the adapter: the job has them for itself from here on.
            await self._copy(body.training_file, access, data.training, "training_file")
            if body.validation_file is not None and data.validation is not None:
                await self._copy(body.validation_file, access, data.validation, "validation_file")
            if model.folder is not None and data.adapter is not None:
                await asyncio.to_thread(_copy_adapter, model.folder, data.adapter)
            events = _first_events(id, record)
            told = record.model_dump(mode="json")
            return await self.jobs.create(id, task, access, *events, metadata=body.metadata, fine_tuning=told)

    def _check_models(self, grader: OneGrader) -> None:
        for name in models_of(grader):
            if name != self.model.name:
                text = f"{GRADER}: in a training, the base model {self.model.name!r} judges, and not {name!r}."
                raise UnsupportedParameter(text, param=GRADER)

    async def _check_response_format(self, body: CreateFineTuningJob) -> None:
        """Raises InvalidRequest where no engine can hold answers to it."""
        structured = structured_of(body.response_format)
        if structured is not None:
            await self.inference.pools.grammar.run(validate, structured, RESPONSE_FORMAT)

    def _template_kwargs(self, effort: Any, model: Lease) -> dict[str, Any] | None:
        """What the chat template is told of the reasoning effort. Raises UnsupportedParameter."""
        if effort is None:
            return None
        variables = self.model.as_asked(model).effort
        if not variables.knows_effort:
            text = f"{EFFORT} is not supported: the model's chat template has no such setting."
            raise UnsupportedParameter(text, param=EFFORT)
        return variables.values(effort, None, None)

    def _record(
        self,
        id: str,
        body: CreateFineTuningJob,
        model: Lease,
        said: Said,
        template_kwargs: dict[str, Any] | None,
    ) -> FineTuning:
        return FineTuning(
            model=model.name,
            from_adapter=model.folder is not None,
            brings_template=model.chat_template is not None,
            name=model_name(base=self.model.name, owner=self.model.owner, suffix=body.suffix, job_id=id),
            owner=self.model.owner,
            training_file=body.training_file,
            validation_file=body.validation_file,
            method=body.method_name,
            wanted=said.wanted,
            grader=None if body.grader is None else body.grader.model_dump(mode="json", exclude_unset=True),
            response_format=body.response_format,
            template_kwargs=template_kwargs,
            suffix=body.suffix,
            seed=secrets.randbelow(SEEDS) if said.seed is None else said.seed,
            parameters=said.parameters,
        )

    async def _copy(self, id: str, access: Access, target: Path, param: str) -> None:
        try:
            file = await self.files.get(id, access)
            if file.purpose != "fine-tune":
                raise InvalidRequest(f"{param}: the file's purpose is {file.purpose!r}, not 'fine-tune'.", param=param)
            await self.files.copy_to(id, access, target)
        except NotFound:
            raise NotFound(f"{param}: there is no file {id[:100]!r}.", param=param, code="file_not_found") from None


CreatorDep = Annotated[Creator, Depends(part(Creator))]


def _check_supported(task: TrainingTask) -> None:
    for name, reason in refusals(task):
        if name in AS_SERVED:
            text = f"The model is served with {name}, and cannot be trained so: {reason}."
            raise UnsupportedParameter(text, param="model")
        if name == "adapters":  # which no client gives: the model is one
            raise UnsupportedParameter(f"The model is an adapter: {reason}.", param="model")
        place = GRADER if name == "grader" else f"parameters.{name}"
        raise UnsupportedParameter(f"{place}: {reason}.", param=place)


def _copy_adapter(folder: Path, target: Path) -> None:
    """Raises StorageFull."""
    try:
        target.mkdir()
        for file in folder.iterdir():
            shutil.copyfile(file, target / file.name)
    except OSError as error:
        raise to_storage_error(error) from error


def _first_events(id: str, record: FineTuning) -> list[Message]:
    files = [message(f"Validating training file: {record.training_file}")]
    if record.validation_file is not None:
        files.append(message(f"Validating validation file: {record.validation_file}"))
    return [message(f"Created fine-tuning job: {id}"), *files]
