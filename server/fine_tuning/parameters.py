"""The extra field `parameters` of a fine-tuning job: which of the command line's parameters a client may choose here."""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from engines.errors import InvalidRequest, UnsupportedParameter
from server.http.validation import to_invalid_request
from training.params.rlhf import RlhfParams
from training.params.sft import SftParams

SAID_BY_OPENAI: dict[str, str] = {
    "dataset": "training_file",
    "val_dataset": "validation_file",
    "rlhf_type": "method.type",
    "task_type": "method.type",
}
"""What a field of OpenAI's says, and which one. What may be said in either place is in `twins`."""

A_FILE = "it names files or code of the server's machine"
THE_MODEL = "the model that is served is the one that is trained"
THE_JOB = "the server says so itself, for all jobs"
CHOSEN_HERE: dict[str, str] = {
    **dict.fromkeys(("custom_dataset_info", "custom_register_path", "deepspeed", "local_repo_path"), A_FILE),
    **dict.fromkeys(("resume_from_checkpoint", "output_dir", "reward_model", "reward_adapters", "ref_model"), A_FILE),
    **dict.fromkeys(("model", "model_type", "model_revision", "model_kwargs", "adapters", "rope_scaling"), THE_MODEL),
    **dict.fromkeys(("template", "template_backend", "use_chat_template", "system", "num_labels"), THE_MODEL),
    **dict.fromkeys(("device_map", "report_to", "add_version"), THE_JOB),
    **dict.fromkeys(("hub_token", "push_to_hub", "hub_model_id", "hub_private_repo", "use_hf"), THE_JOB),
    **dict.fromkeys(("load_args", "load_data_args", "resume_only_model", "save_only_model", "check_model"), THE_JOB),
    **dict.fromkeys(("enable_cache", "download_mode", "save_on_each_node", "ddp_backend"), THE_JOB),
    "strict": "a line that cannot be used fails the job",
    "streaming": "the file is read whole before the job trains",
    "model_name": "it is for self-cognition data, which no uploaded file is",
    "model_author": "it is for self-cognition data, which no uploaded file is",
}
"""Parameters that no client may choose, and why."""

SAVING_OFF = "without checkpoints a job could not go on after an interruption"
PROCESSES = ("dataset_num_proc", "dataloader_num_workers")
LARGEST: dict[str, int] = {
    "per_device_train_batch_size": 256,
    "per_device_eval_batch_size": 256,
    "max_new_tokens": 4096,
    "lora_rank": 4096,
}


def check_parameters(
    given: Mapping[str, Any], kind: type[SftParams | RlhfParams], *, max_model_len: int
) -> SftParams | RlhfParams:
    """`given`, parsed. Refuses what is no parameter, what a client may not choose, and sizes that would only fill the
    machine.

    Raises InvalidRequest, whose `param` is `parameters.NAME`. A parameter that is sound but has no effect is refused
    later, with the whole task.
    """
    for name in given:
        if name in SAID_BY_OPENAI:
            raise _refused(name, f"say it in {SAID_BY_OPENAI[name]}")
        if name in CHOSEN_HERE:
            raise _refused(name, CHOSEN_HERE[name])
    params = parse(given, kind)
    if params.save_strategy == "no":
        raise _refused("save_strategy", SAVING_OFF)
    limits = LARGEST | dict.fromkeys(PROCESSES, os.cpu_count() or 1) | {"max_length": max_model_len}
    for name in given.keys() & limits.keys():
        if (value := getattr(params, name)) is not None and value > limits[name]:
            message = f"parameters.{name} is {value}, and here at most {limits[name]}."
            raise InvalidRequest(message, param=f"parameters.{name}")
    return params


def parse(given: Mapping[str, Any], kind: type[SftParams | RlhfParams]) -> SftParams | RlhfParams:
    required: dict[str, Any] = {"rlhf_type": "dpo"} if kind is RlhfParams else {}
    try:
        return kind.model_validate({**given, **required})
    except ValidationError as error:
        details = [{**one, "loc": ("parameters", *one["loc"])} for one in error.errors(include_url=False)]
        raise to_invalid_request(details, {"parameters": given}) from None


def _refused(name: str, reason: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"parameters.{name} cannot be chosen: {reason}.", param=f"parameters.{name}")
