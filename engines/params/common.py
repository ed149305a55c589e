"""What every command shares: model, template, data, generation, quantisation, and the rest of the reference's base."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from engines.params.about import (
    DEPLOY,
    EVAL,
    EVERY_ENGINE,
    FOR_IMAGES,
    INFER,
    MERGE,
    THE_MODEL,
    THE_SERVER,
    TRAINING,
    About,
)
from engines.params.base import JsonObject, Strings
from engines.params.data import DataParams
from engines.params.generation import GenerationParams
from engines.params.model import ModelParams
from engines.params.quantization import QuantizationParams
from engines.params.template import TemplateParams

TrainType = Literal[
    "lora", "full", "longlora", "adalora", "llamapro", "adapter", "vera", "boft", "fourierft", "reft", "bone",
    "loha", "lokr", "ia3", "randlora", "trainable_tokens",
]  # fmt: skip


def _by_peft(name: object) -> object:
    return "bone" if name == "miss" else name


class BaseParams(GenerationParams, QuantizationParams, DataParams, TemplateParams, ModelParams):
    """What every command shares."""

    starred: ClassVar = frozenset({"tuner_backend", "train_type", "adapters"})

    tuner_backend: Annotated[Literal["peft", "unsloth"], About(TRAINING)] = "peft"
    """Library that puts adapters into the model. `unsloth` is refused: it needs an environment of its own, with older
    releases of transformers and TRL."""
    train_type: Annotated[TrainType, BeforeValidator(_by_peft), About(TRAINING)] = "lora"
    """What is trained: the model's own weights (`full`), or an adapter of the kind named. `bone`, which PEFT calls
    `miss` (that name works too), `loha`, `lokr`, `ia3`, `randlora` and `trainable_tokens` are here although the
    reference does not list them."""
    adapters: Annotated[
        Strings, About(DEPLOY + TRAINING + MERGE + EVAL, one_run=True, names="adapter", not_in_fine_tuning=THE_MODEL)
    ] = ()
    """Adapters to load on top of the model, as paths or hub ids; `NAME=PATH` gives one a name to be asked for."""
    seed: Annotated[int, About(TRAINING + INFER + EVAL, engines=EVERY_ENGINE, trainer=True, openai="seed")] = Field(
        42, ge=0
    )
    """Seed of everything random, except about data. A server draws the texts of requests that bring no seed from it
    only where it is given; without, they differ after each start."""
    model_kwargs: Annotated[
        JsonObject | None, About(not_in_deploy=FOR_IMAGES, not_in_training=FOR_IMAGES, not_in_fine_tuning=THE_MODEL)
    ] = None
    """Settings of one model family (see the model-specific parameters), as a JSON object: `{"max_pixels": 602112}`.
    Upper and lower case mean the same. The environment variable of a setting's name is read where it is not here."""
    load_args: Annotated[bool, About(TRAINING + INFER, one_run=True, not_in_fine_tuning=THE_SERVER)] = True
    """Where `model`, `adapters` or `resume_from_checkpoint` names a checkpoint of ours, take the parameters that it was
    trained with for those that are not given here: all but those of data, generation and code, and of a method or tuner
    that is another here."""
    load_data_args: Annotated[
        bool, About(TRAINING + INFER, one_run=True, not_in_api="name the data in the request")
    ] = False
    """With `load_args`, take the parameters of data as well."""
    use_hf: Annotated[bool, About(DEPLOY + TRAINING + MERGE + EVAL, choices=(True,), not_in_fine_tuning=THE_SERVER)] = (
        True
    )
    """Models and data sets come from the Hugging Face hub. True here, where the reference says false, and never false:
    ModelScope, the reference's other hub, is not built in."""
    hub_token: Annotated[
        str | None,
        About(
            DEPLOY + TRAINING + MERGE + EVAL,
            engines=EVERY_ENGINE,
            secret=True,
            variable="HF_TOKEN",
            not_in_api=THE_SERVER,
        ),
    ] = None
    """Access token for the hub. It is written to no file; the environment variable HF_TOKEN says it too, and does not
    show in the list of processes as a flag does."""
    custom_register_path: Annotated[Strings, About(TRAINING + INFER, path=True)] = ()
    """Python files, or folders of them, that register optimizers, losses and metrics by name (`training.plugins` says
    how), or define `DATASETS`, a dict from names to functions that return rows. Their code is run. The reference's also
    register models and chat templates, which these cannot."""

    @field_validator("use_hf")
    @classmethod
    def _only_hugging_face(cls, use_hf: bool) -> bool:
        if not use_hf:
            raise ValueError(
                "ModelScope is not supported: models and data sets come from the Hugging Face hub, and go to it"
            )
        return use_hf
