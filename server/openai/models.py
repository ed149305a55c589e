"""/v1/models: what requests can name as their `model`: the base model, its adapters, and their aliases."""

from typing import Any

from fastapi import APIRouter, Request

from engines.adapters.view import Adapter
from engines.errors import InvalidRequest, ModelNotFound
from server.deps import ReadyServing, Serving, lease
from server.http.auth import Role
from server.http.errors import InsufficientPermissions

router = APIRouter(prefix="/v1/models")

FINE_TUNED = "ft:"
"""What the names of those begin with that jobs have made."""


@router.get("")
async def list_models(serving: ReadyServing) -> dict[str, Any]:
    """Those that a request may name: no adapter that only drains, or that cannot be served any more."""
    served = {a.name: a for a in serving.registry.adapters() if a.state not in ("draining", "failed")}
    aliases = {alias: served[name] for alias, name in serving.registry.aliases().items() if name in served}
    cards = [_adapter_card(serving, name, adapter) for name, adapter in (served | aliases).items()]
    return {"object": "list", "data": [_base_card(serving), *cards]}


@router.get("/{model:path}")
async def get_model(request: Request, model: str, serving: ReadyServing) -> dict[str, Any]:
    leased = await lease(request, model)
    if leased.version is None:
        return _base_card(serving)
    name = model if model in serving.registry.aliases() else leased.name
    return _adapter_card(serving, name, serving.registry.get(leased.name))


@router.delete("/{model:path}")
async def delete_model(request: Request, model: str, serving: ReadyServing) -> dict[str, Any]:
    """Unload an adapter, or take back an alias; requests that run end with what they have."""
    if model == serving.model_name:
        raise InvalidRequest(f"{model!r} is the base model: it is served until the server stops.", param="model")
    if Role.ADMIN not in request.state.roles and not model.startswith(FINE_TUNED):
        raise InsufficientPermissions(f"This API key may only delete models that jobs have made: {FINE_TUNED}...")
    try:
        await serving.registry.unload(model)
    except ModelNotFound:
        raise ModelNotFound(f"The model {model[:100]!r} does not exist.", param="model") from None
    return {"id": model, "object": "model", "deleted": True}


def _base_card(serving: Serving) -> dict[str, Any]:
    return {
        "id": serving.model_name,
        "object": "model",
        "created": serving.created,
        "owned_by": serving.params.owned_by,
        "root": serving.model_root,
        "max_model_len": serving.engine.capabilities().max_model_len,
    }


def _adapter_card(serving: Serving, name: str, adapter: Adapter) -> dict[str, Any]:
    """The card of an adapter under its name or an alias: the base model's, but for what is its own."""
    own = {"id": name, "created": adapter.created, "root": adapter.source, "parent": serving.model_name}
    return _base_card(serving) | own
