"""Running a model: which engine, and its settings."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from engines.params.about import DEPLOY, EVERY_ENGINE, About
from engines.params.common import BaseParams
from engines.params.engine import EngineParams
from engines.params.lmdeploy import LmdeployParams
from engines.params.merge import MergeLoraParams
from engines.params.vllm import VllmParams


class InferParams(MergeLoraParams, VllmParams, LmdeployParams, EngineParams, BaseParams):
    """Answering a data set, or a person at the terminal."""

    starred: ClassVar = frozenset({"infer_backend", "max_batch_size"})

    infer_backend: Annotated[Literal["pt", "vllm", "lmdeploy"], About(DEPLOY)] = "pt"
    """Which engine runs the model: our own (`pt`), vLLM or LMDeploy."""
    max_batch_size: Annotated[int | None, About(DEPLOY, engines=EVERY_ENGINE, same_as="max_num_seqs")] = Field(
        None, ge=1
    )
    """Another name of `max_num_seqs`. The reference says 1; here requests join and leave a running batch, so waiting
    for others costs a request nothing."""
    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"] | None = None
    """How the processes of an inference on several GPUs talk to one another."""
    result_path: str | None = None
    """Where answers are written, as JSON lines. In the checkpoint's folder, or in ./result, unless given."""
    val_dataset_sample: int | None = Field(None, ge=1)
    """Answer this many rows of the data set. All unless given."""
