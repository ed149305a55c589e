"""From the parameters of `deploy` to the engine they ask for."""

from pathlib import Path
from typing import TYPE_CHECKING

from engines.checkpoint.gguf.named import is_gguf
from engines.errors import UnsupportedModel
from engines.process.client import ProcessEngine
from engines.process.config import patience_of

if TYPE_CHECKING:
    from engines.params.deploy import DeployParams


def build_engine(params: "DeployParams", *, several_owners: bool) -> ProcessEngine:
    """Return the engine, which loads the model already: what comes before `start` costs it no time.

    `several_owners`: their requests are to find nothing of one another's in the prefix cache.
    Raises UnsupportedModel where the engine is not installed, or cannot do what the parameters ask.
    """
    if params.infer_backend != "pt" and is_gguf(params.model or ""):
        message = (
            f"{Path(params.model or '').name!r} is a GGUF file, which {params.infer_backend} does not read: pt does"
        )
        raise UnsupportedModel(message, param="infer_backend")
    engine = _build(params, several_owners)
    engine.prepare()
    return engine


def _build(params: "DeployParams", several_owners: bool) -> ProcessEngine:
    waiting, patience = params.max_num_queued_reqs, patience_of(params)
    match params.infer_backend:
        case "pt":
            from engines.pt.client import PtEngine
            from engines.pt.config import pt_config

            return PtEngine(pt_config(params), max_num_queued_reqs=waiting, patience=patience)
        case "vllm":
            from engines.vllm.client import VllmEngine
            from engines.vllm.config import vllm_config

            return VllmEngine(vllm_config(params), max_num_queued_reqs=waiting, patience=patience)
        case "lmdeploy":
            from engines.lmdeploy.client import LmdeployEngine
            from engines.lmdeploy.config import for_several_owners, lmdeploy_config

            config = lmdeploy_config(params)
            if several_owners:
                config = for_several_owners(config, params)
            return LmdeployEngine(config, max_num_queued_reqs=waiting, patience=patience)
