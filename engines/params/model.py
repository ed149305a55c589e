"""Which weights, and how to load them."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from engines.params.about import DEPLOY, EVAL, EVERY_ENGINE, MERGE, THE_MODEL, THE_SERVER, TRAINING, About
from engines.params.base import JsonObject, Params

SAYS_ITSELF = "the model says it itself, in its config.json: leave it out"
NO_REPOSITORY = (
    "it is for models of images whose code is a repository of its own; models are made by transformers' classes here, "
    "and none needs a repository: leave it out"
)
ONE_DEVICE = "a training has the model on the device that it computes on; deepspeed zero3 divides it among several"

DType = Literal["float16", "bfloat16", "float32"]
TaskType = Literal["causal_lm", "seq_cls"]


def _no_path(revision: str) -> str:
    """No name in Git has `..` in it, and libraries make paths of these names."""
    if ".." in revision or revision.startswith("/"):
        raise ValueError("is the name of a branch, a tag or a commit")
    return revision


Revision = Annotated[str, AfterValidator(_no_path)]
"""Branch, tag or commit."""


class ModelParams(Params):
    """Which weights, and how to load them."""

    starred: ClassVar = frozenset({"model", "torch_dtype"})

    model: Annotated[
        str | None,
        About(DEPLOY + TRAINING + MERGE + EVAL, engines=EVERY_ENGINE, names="model", not_in_fine_tuning=THE_MODEL),
    ] = None
    """The model: the path of a local folder or of a GGUF file (pt), or an id on the Hugging Face hub."""
    model_type: Annotated[
        str | None, About(TRAINING, text=True, not_in_deploy=SAYS_ITSELF, not_in_fine_tuning=THE_MODEL)
    ] = None
    """Which family the model belongs to, by the name that its config.json has for it: a training of another one ends
    before it begins. Nothing is chosen by it, as every model says it itself."""
    model_revision: Annotated[
        Revision | None,
        About(
            DEPLOY + TRAINING + MERGE + EVAL,
            engines=EVERY_ENGINE,
            text=True,
            not_in_fine_tuning=THE_MODEL,
            as_served=True,
        ),
    ] = None
    """Branch, tag or commit of a model on the hub. The repository's main branch unless given."""
    torch_dtype: Annotated[DType | None, About(TRAINING + MERGE + EVAL, engines=EVERY_ENGINE, as_served=True)] = None
    """Type of the weights and of the computation. The type named in config.json unless given, but float32 on a CPU
    that has no instructions for that type: every bfloat16 or float16 value is also a float32 value, and such a CPU
    computes several times faster in float32."""
    task_type: Annotated[TaskType, About(TRAINING, engines=("pt",), not_in_fine_tuning="say it in method.type")] = (
        "causal_lm"
    )
    """What the model is for: `causal_lm` continues text, `seq_cls` puts a text into one of `num_labels` classes. A
    checkpoint that says in its config.json that it has such a head is served as one without being told."""
    attn_impl: Annotated[
        Literal["flash_attn", "sdpa", "eager"] | None, About(TRAINING, engines=("pt",), as_served=True)
    ] = None
    """Attention kernel: the fastest that runs here unless given. Not every model runs with each of them: one that
    cannot is refused when it is loaded, and so is `sdpa` in a training of Gemma 2: it leaves out the cap on scores."""
    num_labels: Annotated[int | None, About(prepares=True, not_in_fine_tuning=THE_MODEL)] = Field(None, ge=1)
    """Number of classes of a `seq_cls` model; 1 makes it a regression, as reward models are. In training, that of the
    model's head unless given, where it has one."""
    rope_scaling: Annotated[
        Literal["linear", "dynamic"] | None,
        About(TRAINING, engines=("pt",), not_in_fine_tuning=THE_MODEL, as_served=True),
    ] = None
    """Stretch the rotary position embedding so that the model takes `max_length` tokens, more than it was trained
    with. `linear` scales all positions; `dynamic` raises the base for the whole of that length (NTK). A model that was
    trained with a scaling of another kind (llama3, yarn, longrope) is refused. What `full` and `llamapro` train says
    it in its config.json; an adapter is served with the same two parameters."""
    device_map: Annotated[
        str | JsonObject | None, About(engines=("pt",), not_in_api=THE_SERVER, not_in_training=ONE_DEVICE)
    ] = None
    """Where the weights go: a device (`cpu`, `cuda:0`), a strategy of accelerate (`auto`, `balanced`), or a JSON object
    (or the path of a JSON file) from module names to devices. The first accelerator, else the CPU, unless given."""
    local_repo_path: Annotated[
        str | None, About(path=True, not_in_deploy=NO_REPOSITORY, not_in_training=NO_REPOSITORY)
    ] = None
    """A local clone of the GitHub repository that some models need beside their weights, in place of cloning it."""
