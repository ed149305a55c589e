"""The base model as the API knows it: its names, how its prompts are written, and how its output is read."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends

from engines.adapters.registry import Lease
from engines.checkpoint.gguf.named import is_gguf, name_of
from engines.params.deploy import DeployParams
from engines.params.model import ModelParams
from engines.text.prompt import PromptRenderer
from engines.text.templates import chosen_template
from engines.text.vocabulary import Vocabulary
from server.deps import part
from server.model.defaults import SamplingDefaults, sampling_defaults
from server.model.effort import EffortVariables, find_effort_variables
from server.model.output import OutputFormat, find_output_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TEMPLATES = 64
"""Chat templates of adapters that are kept ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    name: str
    """Its name in the API."""
    root: str
    """Name of the folder or repository that it was loaded from, without what stands before it."""
    created: int
    """Unix time at which the server started, which OpenAI's API asks of a model."""
    owner: str
    tokenizer: "PreTrainedTokenizerBase"
    renderer: PromptRenderer
    vocabulary: Vocabulary
    output_format: OutputFormat
    effort: EffortVariables
    defaults: SamplingDefaults
    """Sampling parameters that a request does not give."""
    max_logprobs: int
    """Most logprobs of a token that a request may ask for."""
    speaking: Callable[[str], "ServedModel"]
    """The same model with the chat template that an adapter brings."""

    def as_asked(self, lease: Lease) -> "ServedModel":
        """As an adapter speaks that a request names: what was trained with a template is served with it."""
        template = lease.chat_template
        return self if template is None or self.renderer.writes(template) else self.speaking(template)


ModelDep = Annotated[ServedModel, Depends(part(ServedModel))]


def make_served_model(
    tokenizer: "PreTrainedTokenizerBase", params: DeployParams, generation_config: Mapping[str, Any]
) -> ServedModel:
    """`generation_config` holds what the model's generation_config.json says."""
    root = name_of(params.model or "")

    def output_format(renderer: PromptRenderer) -> OutputFormat:
        return find_output_format(
            renderer.template,
            tokenizer.get_added_vocab(),
            tool_call_parser=params.tool_call_parser,
            reasoning_parser=params.reasoning_parser,
        )

    @lru_cache(TEMPLATES)
    def speaking(template: str) -> ServedModel:
        other = renderer.with_template(template)
        return replace(model, renderer=other, output_format=output_format(other), effort=find_effort_variables(other))

    renderer = PromptRenderer(tokenizer, system=params.system, chat_template=chosen_template(params, tokenizer))
    model = ServedModel(
        name=params.served_model_name or root,
        root=root,
        created=int(time.time()),
        owner=params.owned_by,
        tokenizer=tokenizer,
        renderer=renderer,
        vocabulary=Vocabulary(tokenizer),
        output_format=output_format(renderer),
        effort=find_effort_variables(renderer),
        defaults=sampling_defaults(params, generation_config),
        max_logprobs=params.max_logprobs,
        speaking=speaking,
    )
    return model


def model_source(params: ModelParams) -> str:
    """What the model is loaded from, wherever a process is started: an id on the hub, or a folder or GGUF file by its
    whole path."""
    model = params.model or ""
    local = Path(model).expanduser()
    return str(local.absolute()) if local.is_dir() or is_gguf(model) else model
