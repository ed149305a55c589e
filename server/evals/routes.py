"""/v1/evals, as OpenAI has it: what is to be judged by which graders, and runs of it on models or on stored answers."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter

from server.evals.records import ItemStatus, Status
from server.evals.schema import EvalBody, EvalChanges, RunBody
from server.evals.service import EvalsDep
from server.evals.store import OrderBy
from server.http.body import json_body
from server.http.keys.deps import AccessDep, CallerDep
from server.http.paging import Limit
from server.store.pages import Order

router = APIRouter(prefix="/v1/evals")


@router.post("", status_code=201)
async def create_eval(
    body: Annotated[EvalBody, json_body(EvalBody)], evals: EvalsDep, caller: CallerDep
) -> dict[str, Any]:
    return (await evals.create(body, caller)).to_wire()


@router.get("")
async def list_evals(
    evals: EvalsDep,
    access: AccessDep,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    order_by: OrderBy = "created_at",
) -> dict[str, Any]:
    page, more = await evals.store.page_of_evals(access, after=after, limit=limit, order=order, order_by=order_by)
    return _page([each.to_wire() for each in page], more)


@router.get("/{eval_id}")
async def get_eval(eval_id: str, evals: EvalsDep, access: AccessDep) -> dict[str, Any]:
    return (await evals.store.get_eval(eval_id, access)).to_wire()


@router.post("/{eval_id}")
async def update_eval(
    eval_id: str, body: Annotated[EvalChanges, json_body(EvalChanges)], evals: EvalsDep, access: AccessDep
) -> dict[str, Any]:
    """Its name and its metadata: what it judges stays."""
    changes = body.model_dump(exclude_unset=True)
    return (await evals.store.change_eval(eval_id, access, **changes)).to_wire()


@router.delete("/{eval_id}")
async def delete_eval(eval_id: str, evals: EvalsDep, access: AccessDep) -> dict[str, Any]:
    """With its runs."""
    await evals.delete(eval_id, access)
    return {"object": "eval.deleted", "deleted": True, "eval_id": eval_id}


# ---- runs


@router.post("/{eval_id}/runs", status_code=201)
async def create_run(
    eval_id: str, body: Annotated[RunBody, json_body(RunBody)], evals: EvalsDep, caller: CallerDep
) -> dict[str, Any]:
    return (await evals.start(eval_id, body, caller)).to_wire()


@router.get("/{eval_id}/runs")
async def list_runs(
    eval_id: str,
    evals: EvalsDep,
    access: AccessDep,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Status | None = None,
) -> dict[str, Any]:
    page, more = await evals.store.page_of_runs(eval_id, access, status=status, after=after, limit=limit, order=order)
    return _page([each.to_wire() for each in page], more)


@router.get("/{eval_id}/runs/{run_id}")
async def get_run(eval_id: str, run_id: str, evals: EvalsDep, access: AccessDep) -> dict[str, Any]:
    return (await evals.store.get_run(run_id, access, eval_id)).to_wire()


@router.post("/{eval_id}/runs/{run_id}/cancel")
async def cancel_run(eval_id: str, run_id: str, evals: EvalsDep, access: AccessDep) -> dict[str, Any]:
    """What is done is kept."""
    return (await evals.cancel(run_id, access, eval_id)).to_wire()


@router.post("/{eval_id}/runs/{run_id}")
async def cancel_run_by_its_path(eval_id: str, run_id: str, evals: EvalsDep, access: AccessDep) -> dict[str, Any]:
    """The same: OpenAI's clients write `/cancel`, its description does not."""
    return (await evals.cancel(run_id, access, eval_id)).to_wire()


@router.delete("/{eval_id}/runs/{run_id}")
async def delete_run(eval_id: str, run_id: str, evals: EvalsDep, access: AccessDep) -> dict[str, Any]:
    """With its output items."""
    await evals.delete_run(run_id, access, eval_id)
    return {"object": "eval.run.deleted", "deleted": True, "run_id": run_id}


# ---- output items


@router.get("/{eval_id}/runs/{run_id}/output_items")
async def list_output_items(
    eval_id: str,
    run_id: str,
    evals: EvalsDep,
    access: AccessDep,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: ItemStatus | None = None,
) -> dict[str, Any]:
    run = await evals.store.get_run(run_id, access, eval_id)
    page, more = await evals.store.page_of_items(run, status=status, after=after, limit=limit, order=order)
    return _page([each.to_wire(eval_id) for each in page], more)


@router.get("/{eval_id}/runs/{run_id}/output_items/{output_item_id}")
async def get_output_item(
    eval_id: str, run_id: str, output_item_id: str, evals: EvalsDep, access: AccessDep
) -> dict[str, Any]:
    run = await evals.store.get_run(run_id, access, eval_id)
    return (await evals.store.get_item(output_item_id, run)).to_wire(eval_id)


def _page(wired: Sequence[dict[str, Any]], more: bool) -> dict[str, Any]:
    first, last = (wired[0]["id"], wired[-1]["id"]) if wired else ("", "")
    return {"object": "list", "data": list(wired), "first_id": first, "last_id": last, "has_more": more}
