"""Read a PEFT adapter's folder, and refuse what the engine could not serve exactly: by name, before anything is loaded.

The configuration comes from anybody, so it is read as data: nothing in it names code or files. Weights are read as
safetensors only; a pickle can run code.
"""

import hashlib
import json
import math
import time
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import regex
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from engines.adapters.spec import CONFIG, INSERTED_CONFIG, MODEL_CONFIG, WEIGHTS, AdapterSpec, LoraModule
from engines.capabilities import AdapterSupport
from engines.checkpoint.heads import HEAD_NAMES, SCORE
from engines.errors import InvalidAdapter, InvalidRequest
from engines.text.templates import checked_template, template_in
from engines.types import Head, ProblemType

PREFIX = "base_model.model."
MAX_CONFIG_BYTES = 1 << 20
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of numbers that are supported, as safetensors calls them."""
MAX_LABELS = 4096
MATCHING_SECONDS = 5.0
"""Time limit for all patterns of an adapter together: a regular expression can be written that takes years."""

Number = TypeVar("Number", int, float)


class _Config(BaseModel):
    """The fields of `adapter_config.json` that determine the outputs; the others say how it was or is to be trained."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    peft_type: str
    base_model_name_or_path: str | None = None
    r: Annotated[int, Field(ge=1)] = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    task_type: str | None = None

    # Served only where they are off.
    use_dora: Any = False
    lora_bias: Any = False
    bias: Any = "none"
    use_qalora: Any = False
    layer_replication: Any = None
    alora_invocation_tokens: Any = None
    target_parameters: Any = None
    trainable_token_indices: Any = None
    ensure_weight_tying: Any = False
    arrow_config: Any = None
    init_lora_weights: Any = True


OFF: dict[str, str] = {
    "use_dora": "DoRA scales the base model's weights themselves: merge the adapter into the model",
    "lora_bias": "adapters with a bias of their own are not served",
    "use_qalora": "QA-LoRA pools the layers' inputs, which is not served",
    "layer_replication": "replicated layers make it another model: merge the adapter into the model",
    "alora_invocation_tokens": "activated LoRA depends on where in the prompt it begins, which is not served",
    "target_parameters": "adapters of bare parameters (mixtures of experts) are not served",
    "trainable_token_indices": "adapters with embeddings of single tokens are not served",
    "ensure_weight_tying": "weights tied within the adapter are not served",
    "arrow_config": "routing between adapters is not served",
}

CHANGES_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations that subtract the adapter's first state from the base model's weights."""


def read_adapter(folder: Path, support: AdapterSupport) -> AdapterSpec:
    """Return what the adapter in `folder` consists of.

    Raises InvalidAdapter, whose `param` names the field at fault.
    """
    refuse_inserted(folder)
    config = _parse(_read(folder, CONFIG))
    _refuse_what_is_not_served(config)
    shapes = _read_shapes(folder / WEIGHTS)
    if not shapes:
        raise InvalidAdapter(f"{WEIGHTS} holds no tensors", param=WEIGHTS)
    head, head_weight = _take_head(folder, config, shapes, support)
    linears, embeddings, saved = _sort_tensors(config, shapes, support)
    _check_saved(config, (*saved, *(HEAD_NAMES if head else ())))
    modules = [*linears.values(), *embeddings.values()]
    rank = max((module.rank for module in modules), default=0)
    if rank > support.max_rank:
        raise InvalidAdapter(f"rank {rank} is above the {support.max_rank} that is served (max_lora_rank)", param="r")
    return AdapterSpec(
        folder=folder,
        base_model=config.base_model_name_or_path or "",
        rank=rank,
        num_bytes=(folder / WEIGHTS).stat().st_size,
        linears=linears,
        embeddings=embeddings,
        saved=saved,
        head=head,
        head_weight=head_weight,
        chat_template=_read_template(folder),
    )


def refuse_inserted(folder: Path) -> None:
    """Raises InvalidAdapter for modules that a training has put into a model: they are computed beside its weights."""
    if (folder / INSERTED_CONFIG).is_file():
        message = "what train_type reft and adapter put into a model is not served, and cannot be merged"
        raise InvalidAdapter(message, param="adapters")


def content_hash(folder: Path) -> str:
    """Hex digest of what determines the outputs of an adapter that has been read: its settings, its weights, and the
    chat template that it brings."""
    config = _parse(_read(folder, CONFIG))
    # The weights say which modules were saved, and whether there is a head.
    names = {"base_model_name_or_path", "modules_to_save", "task_type"}
    digest = hashlib.sha256(config.model_dump_json(exclude=names).encode())
    with (folder / WEIGHTS).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    digest.update((_read_template(folder) or "").encode())
    if (folder / MODEL_CONFIG).is_file():
        digest.update(_read(folder, MODEL_CONFIG))
    return digest.hexdigest()


def _read(folder: Path, name: str) -> bytes:
    try:
        with (folder / name).open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError:
        raise InvalidAdapter(f"the folder has no {name} that can be read", param=name) from None
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"{name} is larger than {MAX_CONFIG_BYTES} bytes", param=name)
    return data


def _read_template(folder: Path) -> str | None:
    try:
        template = template_in(folder)
        return None if template is None else checked_template(template)
    except (OSError, ValueError):
        raise InvalidAdapter("its chat template cannot be read", param="chat_template") from None
    except InvalidRequest as error:
        raise InvalidAdapter(error.message, param="chat_template") from None


def _parse(data: bytes) -> _Config:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidAdapter(f"{CONFIG} is not JSON", param=CONFIG) from None
    try:
        return _Config.model_validate(parsed)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or CONFIG
        raise InvalidAdapter(f"{CONFIG}: {field}: {first['msg']}", param=field) from None


def _refuse_what_is_not_served(config: _Config) -> None:
    if config.peft_type != "LORA":
        message = f"adapters of type {config.peft_type[:50]!r} are not served, only 'LORA'"
        raise InvalidAdapter(message, param="peft_type")
    if config.bias != "none":
        raise InvalidAdapter("adapters that change biases are not served, only bias 'none'", param="bias")
    for field, reason in OFF.items():
        if getattr(config, field):
            raise InvalidAdapter(f"{field}: {reason}", param=field)
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower().startswith(CHANGES_THE_BASE):
        message = (
            f"init_lora_weights {init[:50]!r} changed the base model's weights: save the adapter relative to the "
            "original ones (PEFT's path_initial_model_for_weight_conversion)"
        )
        raise InvalidAdapter(message, param="init_lora_weights")


def _read_shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from the file's header."""
    if not weights.is_file():
        raise InvalidAdapter(f"the folder has no {WEIGHTS}: weights are read as safetensors only", param=WEIGHTS)
    try:
        with safe_open(weights, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no iterator has it
            kinds = {name: tensor.get_dtype() for name, tensor in slices.items()}
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
    except (OSError, SafetensorError) as error:
        raise InvalidAdapter(f"{WEIGHTS} is broken: {str(error)[:200]!r}", param=WEIGHTS) from None
    for name, kind in kinds.items():
        if kind not in FLOATS:
            message = f"{name[:200]!r} is of type {kind}; served are {', '.join(FLOATS)}: quantized adapters are not"
            raise InvalidAdapter(message, param=name[:200])
    return shapes


def _take_head(
    folder: Path, config: _Config, shapes: dict[str, tuple[int, ...]], support: AdapterSupport
) -> tuple[Head | None, str | None]:
    """The adapter's own head and the name of its tensor, which is taken out of `shapes`."""
    name = f"{PREFIX}{SCORE}.weight"
    shape = shapes.pop(name, None)
    if shape is None:
        if config.task_type == "SEQ_CLS":
            message = f"task_type is 'SEQ_CLS', and {WEIGHTS} holds no {name!r}, by which it would classify"
            raise InvalidAdapter(message, param="modules_to_save")
        return None, None
    if support.head_inputs is None:
        raise InvalidAdapter("adapters with a head that classifies are not served by this engine", param="task_type")
    if len(shape) != 2 or not 1 <= shape[0] <= MAX_LABELS or shape[1] != support.head_inputs:
        message = f"{name} is of shape {list(shape)}; with this model it would be [labels, {support.head_inputs}]"
        raise InvalidAdapter(f"{message}, with at most {MAX_LABELS} labels", param="modules_to_save")
    return _read_head(folder, shape[0], support), name


class _TextConfig(BaseModel):
    """The fields of `config.json` that say how a head is read, and where a text ends."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id2label: dict[str, str] | None = None
    problem_type: ProblemType | None = None
    pad_token_id: int | None = None


class _HeadConfig(_TextConfig):
    text_config: _TextConfig = _TextConfig()


def _read_head(folder: Path, num_labels: int, support: AdapterSupport) -> Head:
    """A single label is a regression where nothing else is said, as in transformers."""
    labels = tuple(f"LABEL_{at}" for at in range(num_labels))
    meaning: ProblemType | None = "regression" if num_labels == 1 else None
    if not (folder / MODEL_CONFIG).is_file():
        return Head(labels=labels, problem_type=meaning, padding=support.padding)
    try:
        said = _HeadConfig.model_validate_json(_read(folder, MODEL_CONFIG))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidAdapter(
            f"{MODEL_CONFIG}: {'.'.join(map(str, first['loc']))}: {first['msg']}", param=MODEL_CONFIG
        ) from None
    if said.id2label is not None:
        if sorted(said.id2label) != sorted(map(str, range(num_labels))):
            raise InvalidAdapter(
                f"{MODEL_CONFIG}: id2label does not name the {num_labels} labels of the head", param=MODEL_CONFIG
            )
        labels = tuple(said.id2label[str(at)] for at in range(num_labels))
    padding = said.pad_token_id if said.pad_token_id is not None else said.text_config.pad_token_id
    return Head(labels=labels, problem_type=said.problem_type or meaning, padding=padding)


def _sort_tensors(
    config: _Config, shapes: dict[str, tuple[int, ...]], support: AdapterSupport
) -> tuple[dict[str, LoraModule], dict[str, LoraModule], dict[str, str]]:
    """The adapter's linears, embeddings and replaced modules, each by its path in the model."""
    linears: dict[str, LoraModule] = {}
    embeddings: dict[str, LoraModule] = {}
    saved: dict[str, str] = {}
    ranks = _ByPattern("rank_pattern", config.rank_pattern, config.r)
    alphas = _ByPattern("alpha_pattern", config.alpha_pattern, config.lora_alpha)

    def pair(path: str, a: str, b: str, shape: tuple[int, int]) -> LoraModule:
        rank = ranks[path]
        _check_pair(shapes, a, b, rank, *shape)
        return LoraModule(a=a, b=b, rank=rank, scale=alphas[path] / (math.sqrt(rank) if config.use_rslora else rank))

    for name, shape in shapes.items():
        path, _, kind = name.removeprefix(PREFIX).partition(".lora_")
        if not name.startswith(PREFIX):
            raise InvalidAdapter(f"{name[:200]!r} is not the name of a tensor of a PEFT adapter", param=name[:200])
        if kind == "A.weight":
            b = f"{PREFIX}{path}.lora_B.weight"
            linears[path] = pair(path, name, b, _known(path, support.linears))
        elif kind == "embedding_A":
            b = f"{PREFIX}{path}.lora_embedding_B"
            embeddings[path] = pair(path, name, b, _known(path, support.embeddings))
        elif kind in ("B.weight", "embedding_B"):
            a = name.replace(".lora_B.", ".lora_A.").replace(".lora_embedding_B", ".lora_embedding_A")
            if a not in shapes:
                raise InvalidAdapter(f"{name[:200]!r} has no {a[:200]!r} beside it", param=name[:200])
        elif kind:
            raise InvalidAdapter(f"{name[:200]!r} is not a tensor that is served", param=name[:200])
        else:
            path = _saved_path(name, shape, support)
            saved[path] = name
    return linears, embeddings, saved


def _known(path: str, modules: dict[str, tuple[int, int]]) -> tuple[int, int]:
    if path not in modules:
        message = f"the model has no layer {path[:200]!r} that can be adapted"
        raise InvalidAdapter(message, param="target_modules")
    return modules[path]


def _check_pair(shapes: dict[str, tuple[int, ...]], a: str, b: str, rank: int, inputs: int, outputs: int) -> None:
    if b not in shapes:
        raise InvalidAdapter(f"{a} has no {b} beside it", param=a)
    for name, expected in ((a, (rank, inputs)), (b, (outputs, rank))):
        shape = shapes[name]
        if shape != expected:
            other = 1 if name == a else 0
            of_rank = len(shape) == 2 and shape[other] == expected[other]
            field = "r" if of_rank else "base_model_name_or_path"
            message = f"{name} is of shape {list(shape)}; with this model and rank {rank} it would be {list(expected)}"
            raise InvalidAdapter(message, param=field)


class _ByPattern(Generic[Number]):
    """Values by module path, as PEFT looks them up: the first key that is the end of the path, or matches it,
    decides."""

    def __init__(self, field: str, pattern: dict[str, Number] | None, default: Number) -> None:
        self._field = field
        self._default: Number = default
        self._deadline = time.monotonic() + MATCHING_SECONDS
        try:
            self._values: list[tuple[Any, Number]] = [
                (regex.compile(rf"(.*\.)?({key})$"), value) for key, value in (pattern or {}).items()
            ]
        except regex.error as error:
            raise InvalidAdapter(f"{field} has a key that is no regular expression: {error}", param=field) from None

    def __getitem__(self, path: str) -> Number:
        try:
            for key, value in self._values:
                if key.match(path, timeout=max(0.0, self._deadline - time.monotonic()), concurrent=True):
                    return value
        except TimeoutError:
            raise InvalidAdapter(f"{self._field} takes too long to match", param=self._field) from None
        return self._default


def _check_saved(config: _Config, saved: Collection[str]) -> None:
    """Refuse an adapter that lacks a module which was trained as a whole: the base model's would be in its place."""
    for module in config.modules_to_save or ():
        if not any(f".{path}".endswith(f".{module}") for path in saved):
            message = f"modules_to_save names {module[:200]!r}, of which {WEIGHTS} holds no weights"
            raise InvalidAdapter(message, param="modules_to_save")


def _saved_path(name: str, shape: tuple[int, ...], support: AdapterSupport) -> str:
    path, _, last = name.removeprefix(PREFIX).rpartition(".")
    path = path.removesuffix(".base_layer")  # PEFT saves the base layer of embeddings that it adapts
    if path not in support.replaceable or last != "weight":
        message = f"modules_to_save: {name[:200]!r} cannot be replaced; only {sorted(support.replaceable)} can"
        raise InvalidAdapter(message, param="modules_to_save")
    expected = support.embeddings.get(path) or tuple(reversed(support.linears[path]))
    if shape != expected:
        message = f"{name} is of shape {list(shape)}, the model's of {list(expected)}"
        raise InvalidAdapter(message, param="modules_to_save")
    return path
