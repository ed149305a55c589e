"""Measuring a model with benchmarks."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from engines.params.about import EVAL, THE_SERVER, About
from engines.params.base import Params, Strings
from engines.params.deploy import DeployParams

BASE = "base"
"""What `compare` calls the model without its adapters."""


class HarnessParams(Params):
    """How a model is measured. An addition to the reference's parameters."""

    eval_backend: Annotated[Literal["lm_eval", "evalscope"], About(EVAL)] = "lm_eval"
    """What asks and scores: EleutherAI's lm-evaluation-harness (`lm_eval`), or EvalScope (`evalscope`, its native
    backend), in an environment of its own: `python -m engines.setup.install evalscope` makes it."""
    eval_few_shot: Annotated[int | None, About(EVAL)] = Field(None, ge=0, le=100)
    """Examples with their answers before each question. As the benchmark says unless given."""
    eval_chat: Annotated[bool, About(EVAL)] = False
    """Ask as a chat, by the model's chat template, rather than let it continue a text."""
    eval_api_key: Annotated[str | None, About(EVAL, secret=True, variable="TUNESERVE_EVAL_API_KEY")] = None
    """Key of the server at `eval_url`."""
    compare: Annotated[str | None, About(EVAL, api_choices=(BASE,))] = None
    """What the model is compared with, question by question, by McNemar's test or a paired bootstrap: the folder of an
    earlier evaluation on the same benchmarks, or a model that is measured beside it: `base`, the model without its
    `adapters`, another adapter's folder, another model, or a name at the server of `eval_url`."""


class EvalParams(HarnessParams, DeployParams):
    """Measuring a model with benchmarks, served for the purpose or already served elsewhere."""

    starred: ClassVar = frozenset({"eval_dataset", "eval_url"})

    eval_dataset: Annotated[Strings, About(EVAL, names="data")] = ()
    """Benchmarks to run: names of the harness's, whose data comes from the hub, files of rows (`.jsonl`), or tasks of
    one's own (`.yaml`)."""
    eval_limit: Annotated[int | None, About(EVAL)] = Field(None, ge=1)
    """Questions taken from each benchmark. All unless given."""
    eval_output_dir: Annotated[str, About(EVAL, not_in_api=THE_SERVER)] = "eval_output"
    """Folder for scores and answers: each evaluation has one of its own in it."""
    temperature: Annotated[float, About(EVAL)] = Field(0.0, ge=0)
    """Temperature of the answers; 0: the likeliest tokens, so that scores can be repeated."""
    verbose: Annotated[bool, About(EVAL)] = False
    """Log every request, where the model is served for the evaluation: EvalScope asks servers alone."""
    eval_num_proc: Annotated[int | None, About(EVAL)] = Field(None, ge=1, le=1024)
    """Questions asked at once: as many as the engine is told to take (`max_num_seqs`), or 32, and 16 of a server unless
    given. More take more memory."""
    eval_url: Annotated[str | None, About(EVAL, not_in_api="jobs ask no other servers")] = None
    """Address of a running server to measure, such as http://localhost:8000/v1. `model` is loaded for the evaluation
    unless given; with it, `model` is a name at that server."""
