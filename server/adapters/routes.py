"""LoRA adapters over HTTP, loaded and replaced while requests run: vLLM's two endpoints, and one resource."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from engines.adapters.view import Adapter
from engines.errors import Conflict, InvalidRequest, TuneserveError
from server.adapters.roots import RootsDep
from server.http.body import RequestBody, StrictBody, json_body
from server.http.field_limits import GivenName, GivenPath
from server.inference.inference import Inference, ReadyInference
from server.model.served import ModelDep, ServedModel

router = APIRouter(prefix="/v1")


class LoadLoraBody(RequestBody):
    lora_name: GivenName
    lora_path: GivenPath
    """A folder under one of `adapter_roots`."""
    load_inplace: bool = False
    """Replace the adapter of this name: running requests end with the old one, later ones get the new one."""


class UnloadLoraBody(RequestBody):
    lora_name: GivenName


class AdapterBody(StrictBody):
    name: GivenName
    path: GivenPath
    """A folder under one of `adapter_roots`."""
    replace: bool = False
    """Replace the adapter of this name: running requests end with the old one, later ones get the new one."""
    pinned: bool | None = None
    """Keep it in its slot, so that its requests never wait for one. As the adapter that it replaces unless given."""


class AliasBody(StrictBody):
    target: GivenName
    """The adapter that the alias stands for."""


# ---- vLLM's endpoints


@router.post("/load_lora_adapter", response_class=PlainTextResponse)
async def load_lora_adapter(
    body: Annotated[LoadLoraBody, json_body(LoadLoraBody)], inference: ReadyInference, roots: RootsDep
) -> PlainTextResponse:
    folder = await inference.pools.files.run(roots.find, body.lora_path, param="lora_path")
    with _vllms_errors():
        await inference.adapters.load(body.lora_name, folder, replace=body.load_inplace)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/unload_lora_adapter", response_class=PlainTextResponse)
async def unload_lora_adapter(
    body: Annotated[UnloadLoraBody, json_body(UnloadLoraBody)], inference: ReadyInference
) -> PlainTextResponse:
    with _vllms_errors():
        await inference.adapters.unload(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


@contextlib.contextmanager
def _vllms_errors() -> Iterator[None]:
    """A conflict is a 400, as vLLM has it, and a name is called what it is called here."""
    try:
        yield
    except Conflict as error:
        raise InvalidRequest(error.message, param="lora_name", code=error.code) from None
    except TuneserveError as error:
        if error.param == "name":
            error.param = "lora_name"
        raise


# ---- the resource


@router.get("/adapters")
async def list_adapters(model: ModelDep, inference: ReadyInference) -> dict[str, Any]:
    aliases = _aliases_of_each(inference)
    data = [_to_wire(adapter, model, aliases) for adapter in inference.adapters.adapters()]
    return {"object": "list", "data": data}


@router.post("/adapters")
async def create_adapter(
    body: Annotated[AdapterBody, json_body(AdapterBody)],
    model: ModelDep,
    inference: ReadyInference,
    roots: RootsDep,
) -> dict[str, Any]:
    folder = await inference.pools.files.run(roots.find, body.path, param="path")
    adapter = await inference.adapters.load(body.name, folder, replace=body.replace, pinned=body.pinned)
    return _to_wire(adapter, model, _aliases_of_each(inference))


@router.get("/adapters/{name:path}")
async def get_adapter(name: str, model: ModelDep, inference: ReadyInference) -> dict[str, Any]:
    return _to_wire(inference.adapters.get(name), model, _aliases_of_each(inference))


@router.delete("/adapters/{name:path}")
async def delete_adapter(name: str, inference: ReadyInference) -> dict[str, Any]:
    await inference.adapters.unload(name)
    return {"id": name, "object": "adapter", "deleted": True}


@router.post("/adapters/{alias:path}/alias")
async def set_alias(
    alias: str, body: Annotated[AliasBody, json_body(AliasBody)], inference: ReadyInference
) -> dict[str, Any]:
    """Point an alias at an adapter, at once: running requests keep the adapter they have."""
    await inference.adapters.alias(alias, body.target)
    return {"id": alias, "object": "adapter.alias", "target": body.target}


def _aliases_of_each(inference: Inference) -> dict[str, list[str]]:
    """Adapter -> its aliases."""
    aliases = defaultdict(list)
    for alias, target in inference.adapters.aliases().items():
        aliases[target].append(alias)
    return aliases


def _to_wire(adapter: Adapter, model: ServedModel, aliases: Mapping[str, list[str]]) -> dict[str, Any]:
    return {
        "id": adapter.name,
        "object": "adapter",
        "name": adapter.name,
        "version": adapter.version or None,
        "source": adapter.source,
        "parent": model.name,
        "rank": adapter.rank,
        "size": adapter.num_bytes,
        "state": adapter.state,
        "error": adapter.error or None,
        "pinned": adapter.pinned,
        "aliases": aliases.get(adapter.name, []),
        "created": adapter.created,
        "in_flight": adapter.in_flight,
        "requests": adapter.requests,
        "last_used": adapter.last_used,
    }
