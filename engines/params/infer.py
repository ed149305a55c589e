"""Running a model: which engine, and its settings."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from engines.params.about import DEPLOY, EVAL, EVERY_ENGINE, INFER, About
from engines.params.common import BaseParams
from engines.params.engine import EngineParams
from engines.params.lmdeploy import LmdeployParams
from engines.params.merge import MergeLoraParams
from engines.params.speculation import SpeculationParams
from engines.params.vllm import VllmParams


class InferParams(MergeLoraParams, VllmParams, LmdeployParams, SpeculationParams, EngineParams, BaseParams):
    """Answering a data set, or a person at the terminal."""

    starred: ClassVar = frozenset({"infer_backend", "max_batch_size"})

    infer_backend: Annotated[Literal["pt", "vllm", "lmdeploy"], About(DEPLOY + EVAL)] = "pt"
    """Which engine runs the model: our own (`pt`), vLLM or LMDeploy."""
    max_batch_size: Annotated[int | None, About(DEPLOY, engines=EVERY_ENGINE, same_as="max_num_seqs")] = Field(
        None, ge=1
    )
    """Another name of `max_num_seqs`. The reference says 1; here requests join and leave a running batch, so waiting
    for others costs a request nothing."""
    ddp_backend: Annotated[Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"] | None, About(INFER)] = None
    """How several processes (the environment variable NPROC_PER_NODE) wait for one another, by PyTorch's names: each
    has an engine and a GPU of its own, and answers its share of the rows. `gloo` unless given."""
    result_path: Annotated[str | None, About(INFER, path=True)] = None
    """Where answers are written, as JSON lines. Where the file is there, the rows that it answers are not asked again.
    Unless given, a new file in `infer_result` of the checkpoint's folder, or of `result/` and the model's name."""
    val_dataset_sample: Annotated[int | None, About(INFER)] = Field(None, ge=1)
    """Answer this many rows of the data set, drawn by `data_seed`. All unless given."""
