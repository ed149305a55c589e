"""Parts: a route names the type of what it needs, and gets the one that its own server was made with."""

from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.testclient import TestClient

from server.deps import Parts, part
from server.http.in_flight import InFlight
from server.http.middleware import RequestContext


class Greeting(str):
    pass


router = APIRouter()


@router.get("/greeting")
async def get_greeting(greeting: Annotated[Greeting, Depends(part(Greeting))]) -> str:
    return greeting


def client_of(parts: Parts) -> TestClient:
    app = FastAPI()
    app.include_router(router)
    app.add_middleware(RequestContext, parts=parts, in_flight=InFlight(), verbose=False)
    return TestClient(app)


def test_two_servers_with_the_same_routes_have_parts_of_their_own() -> None:
    clients = [client_of(Parts(Greeting(text))) for text in ("hello", "goodbye")]
    assert [client.get("/greeting").json() for client in clients] == ["hello", "goodbye"]


def test_a_part_is_no_parameter_of_the_request() -> None:
    operation = client_of(Parts(Greeting())).get("/openapi.json").json()["paths"]["/greeting"]["get"]
    assert "parameters" not in operation


def test_there_is_one_part_of_each_type() -> None:
    with pytest.raises(AssertionError, match="two parts"):
        Parts(Greeting("a"), Greeting("b"))
