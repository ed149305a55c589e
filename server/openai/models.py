"""/v1/models: what requests can name as their `model`."""

from typing import Any

from fastapi import APIRouter

from engines.errors import InvalidRequest
from server.deps import ReadyServing, Serving

router = APIRouter(prefix="/v1/models")


@router.get("")
async def list_models(serving: ReadyServing) -> dict[str, Any]:
    return {"object": "list", "data": [to_card(serving)]}


@router.get("/{model:path}")
async def get_model(model: str, serving: ReadyServing) -> dict[str, Any]:
    serving.resolve(model)
    return to_card(serving)


@router.delete("/{model:path}")
async def delete_model(model: str, serving: ReadyServing) -> dict[str, Any]:
    serving.resolve(model)
    raise InvalidRequest(f"{model!r} is the base model: it is served until the server stops.", param="model")


def to_card(serving: Serving) -> dict[str, Any]:
    return {
        "id": serving.model_name,
        "object": "model",
        "created": serving.created,
        "owned_by": serving.params.owned_by,
        "root": serving.model_root,
        "max_model_len": serving.engine.capabilities().max_model_len,
    }
