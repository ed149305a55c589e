"""/v1/models: what requests can name as their `model`: the base model, its adapters, and their aliases.

In OpenAI's shape, or in Anthropic's where one of its clients asks.
"""

from typing import Any

from fastapi import APIRouter, Request

from engines.adapters.view import Adapter
from engines.errors import InvalidRequest, ModelNotFound
from server.http.error_shapes import speaks_anthropic
from server.http.errors import InsufficientPermissions
from server.http.keys.deps import AccessDep, CallerDep
from server.inference.fine_tuned import FINE_TUNED
from server.inference.inference import Inference, ReadyInference
from server.model.served import ModelDep, ServedModel
from server.openai.anthropic_models import page, to_anthropic

router = APIRouter(prefix="/v1/models")


@router.get("")
async def list_models(
    request: Request, served: ModelDep, inference: ReadyInference, access: AccessDep
) -> dict[str, Any]:
    """The models that a request may name: no adapter that only drains or that cannot be served any more, and no
    fine-tuned model of another owner."""
    adapters = {a.name: a for a in inference.adapters.adapters() if a.served}
    aliases = {alias: adapters[name] for alias, name in inference.adapters.aliases().items() if name in adapters}
    known = {name: each for name, each in adapters.items() if inference.fine_tuned.are_known_to(access, name)}
    base = _base_card(served, inference)
    cards = [base, *(_adapter_card(base, *each) for each in (known | aliases).items())]
    if speaks_anthropic(request.scope):
        return page(cards, request.query_params)
    return {"object": "list", "data": cards}


@router.get("/{model:path}")
async def get_model(
    request: Request, model: str, served: ModelDep, inference: ReadyInference, access: AccessDep
) -> dict[str, Any]:
    leased = await inference.lease(model, access, request.state.answered)
    card = _base_card(served, inference)
    if leased.version is not None:
        name = model if model in inference.adapters.aliases() else leased.name
        card = _adapter_card(card, name, inference.adapters.get(leased.name))
    return to_anthropic(card) if speaks_anthropic(request.scope) else card


@router.delete("/{model:path}")
async def delete_model(model: str, served: ModelDep, inference: ReadyInference, caller: CallerDep) -> dict[str, Any]:
    """Unload an adapter, or take back an alias; requests that run end with what they have."""
    if model == served.name:
        raise InvalidRequest(f"{model!r} is the base model: it is served until the server stops.", param="model")
    of_a_job = model.startswith(FINE_TUNED) and model not in inference.adapters.aliases()
    if not caller.is_admin and not of_a_job:
        raise InsufficientPermissions(f"This API key may only delete models that jobs have made: {FINE_TUNED}...")
    missing = ModelNotFound(f"The model {model[:100]!r} does not exist.", param="model")
    if not inference.fine_tuned.are_known_to(caller.access, model):
        raise missing
    try:
        await inference.adapters.unload(model)
    except ModelNotFound:
        raise missing from None
    return {"id": model, "object": "model", "deleted": True}


def _base_card(served: ServedModel, inference: Inference) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": served.owner,
        "root": served.root,
        "max_model_len": inference.engine.capabilities().max_model_len,
    }


def _adapter_card(base: dict[str, Any], name: str, adapter: Adapter) -> dict[str, Any]:
    """The card of an adapter under its name or an alias: the base model's, but for what is its own."""
    own = {"id": name, "created": adapter.created, "root": adapter.source, "parent": base["id"]}
    return base | own
