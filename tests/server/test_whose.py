"""What keys make is theirs: others find nothing of it, whatever they ask, and it stays so after restarts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from engines.echo import EchoEngine
from engines.errors import StoreUnavailable
from server.inference.inference import Inference
from tests.adapter_folders import write_adapter
from tests.server.api import LINE, Api, succeeded
from tests.server.fine_tuning.conftest import Start, TrainingApi, start
from tests.server.keys import bearer
from tests.until import until

__all__ = ["start"]

ACME, ACME_ASK, ZETA, OPS = (f"{name}-0123456789abcdef" for name in ("acme", "acme-ask", "zeta", "ops"))
KEYS = (f"acme=infer+train:{ACME}", f"acme=infer:{ACME_ASK}", f"zeta=infer+train:{ZETA}", f"ops=infer+admin:{OPS}")
EVENTS = {"accept": "text/event-stream"}


@pytest.fixture
def keyed(start: Start) -> Callable[..., Any]:
    def keyed(**params: Any) -> Any:
        return start(api_key=KEYS, **params)

    return keyed


def of(api: TrainingApi, key: str) -> Api:
    """The same server, asked with a key."""
    client = TestClient(api.http.app, headers=bearer(key))
    client.portal = api.http.portal
    return Api(client)


def trained(api: Api, **body: Any) -> str:
    """The name of a model that a job has made."""
    name: str = api.fine_tuning.wait(api.fine_tuning.create(**body)["id"], "succeeded")["fine_tuned_model"]
    return name


def batch_of(api: Api, *lines: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A batch of chats, once it has ended."""
    url = "/v1/chat/completions"
    rows = [{"custom_id": f"{n}", "method": "POST", "url": url, "body": body} for n, body in enumerate(lines)]
    file = api.upload("".join(json.dumps(row) + "\n" for row in rows), purpose="batch")
    body = {"input_file_id": file, "endpoint": url, "completion_window": "24h", **fields}
    id = succeeded(api.post("/v1/batches", **body))["id"]

    def look() -> dict[str, Any] | None:
        batch = succeeded(api.http.get(f"/v1/batches/{id}"))
        return batch if batch["status"] in ("completed", "failed") else None

    return until(look)


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]}


def ids(page: dict[str, Any]) -> list[str]:
    return [each["id"] for each in page["data"]]


# ---- lists, pages and streams


def test_lists_hold_ones_own_and_an_administrators_hold_all(keyed: Any) -> None:
    with keyed(max_running_jobs=0) as api:
        acme, zeta, ops = of(api, ACME), of(api, ZETA), of(api, OPS)
        made = {}
        for each in (acme, zeta):
            job = each.fine_tuning.create()
            input = each.upload('{"custom_id": "1"}\n', purpose="batch")
            fields = {"input_file_id": input, "endpoint": "/v1/embeddings", "completion_window": "24h"}
            batch = succeeded(each.post("/v1/batches", **fields))["id"]
            made[each] = {"files": [input, job["training_file"]], "batches": [batch], "jobs": [job["id"]]}
        for path, kind in (
            ("/v1/files", "files"),
            ("/v1/batches", "batches"),
            ("/v1/jobs", "jobs"),
            ("/v1/fine_tuning/jobs", "jobs"),
        ):
            for each in (acme, zeta):
                assert ids(succeeded(each.http.get(path))) == made[each][kind]
                assert not succeeded(each.http.get(path, params={"limit": len(made[each][kind])}))["has_more"]
            assert ids(succeeded(ops.http.get(path))) == made[zeta][kind] + made[acme][kind]
            anothers, unknown = (acme.http.get(path, params={"after": id}) for id in (made[zeta][kind][0], "x" * 24))
            assert anothers.status_code == unknown.status_code == 404
            assert anothers.json() == json.loads(unknown.text.replace("x" * 24, made[zeta][kind][0]))
        assert {job["id"]: job["owner"] for job in ops.jobs.page()["data"]} == {
            made[acme]["jobs"][0]: "acme", made[zeta]["jobs"][0]: "zeta",
        }  # fmt: skip


def test_events_and_checkpoints_are_read_by_their_owner_and_after_ones_own(keyed: Any) -> None:
    with keyed() as api:
        acme, zeta = of(api, ACME), of(api, ZETA)
        theirs, ours = (each.fine_tuning.wait(each.fine_tuning.create()["id"])["id"] for each in (acme, zeta))
        for path in (f"/v1/jobs/{theirs}/events", f"/v1/fine_tuning/jobs/{theirs}/events"):
            assert zeta.http.get(path, headers=EVENTS).status_code == 404
        assert zeta.http.get(f"/v1/jobs/{ours}/events", headers=EVENTS).text.count("event: step") == 4
        event, checkpoint = acme.jobs.events(theirs)["data"][0]["id"], acme.fine_tuning.checkpoints(theirs)["first_id"]
        for path, after in (("jobs", event), ("fine_tuning/jobs", event)):
            assert acme.http.get(f"/v1/{path}/{theirs}/events", params={"after": after}).status_code == 200
            assert zeta.http.get(f"/v1/{path}/{ours}/events", params={"after": after}).status_code == 404
        path = f"/v1/fine_tuning/jobs/{ours}/checkpoints"
        assert zeta.http.get(path, params={"after": checkpoint}).status_code == 404


# ---- fine-tuned models


def test_a_fine_tuned_model_answers_its_owners_keys_and_administrators(keyed: Any) -> None:
    with keyed() as api:
        acme, zeta, ops, asks = of(api, ACME), of(api, ZETA), of(api, OPS), of(api, ACME_ASK)
        names = [trained(acme)]
        names += [f"{names[0]}:ckpt-step-{step}" for step in (2, 4)]
        for each in (acme, asks, ops):
            assert list(each.models()) == ["echo", *names]
            assert all(each.chat(model=name)["choices"][0]["message"]["content"] for name in names)
        assert list(zeta.models()) == ["echo"]
        for name in (*names, f"echo:{names[0]}"):
            refused, unknown = zeta.refused_chat(model=name), zeta.refused_chat(model="ft:echo:org::nope")
            assert refused.message == unknown.message.replace("ft:echo:org::nope", name.removeprefix("echo:"))
            assert (refused.status, refused.code, refused.param) == (404, unknown.code, unknown.param)
            assert names[0] not in refused.message.replace(name.removeprefix("echo:"), "")


def test_only_its_owner_and_administrators_delete_a_model(keyed: Any) -> None:
    with keyed() as api:
        acme, zeta, ops = of(api, ACME), of(api, ZETA), of(api, OPS)
        first, second = trained(acme), trained(acme)
        refused, unknown = (zeta.http.delete(f"/v1/models/{name}") for name in (first, f"{first}x"))
        assert (refused.status_code, refused.text) == (404, unknown.text.replace(f"{first}x", first))
        assert acme.http.delete(f"/v1/models/{first}").status_code == 200
        assert ops.http.delete(f"/v1/models/{second}").status_code == 200


def test_an_alias_gives_a_model_to_everybody_and_only_administrators_take_it_back(keyed: Any) -> None:
    with keyed() as api:
        acme, zeta, ops = of(api, ACME), of(api, ZETA), of(api, OPS)
        name = trained(acme)
        for alias in ("support", "ft:support"):
            assert zeta.http.post(f"/v1/adapters/{alias}/alias", json={"target": name}).status_code == 403
            succeeded(ops.adapters.alias(alias, name))
            assert zeta.chat(model=alias)["model"] == alias
            assert succeeded(zeta.http.get(f"/v1/models/{alias}"))["id"] == alias
            for each in (acme, zeta):
                assert each.http.delete(f"/v1/models/{alias}").status_code == 403
        assert zeta.fine_tuning.create(model="support")["model"] == "support"
        assert acme.fine_tuning.create(model="support")["model"] == name
        assert list(zeta.models()) == ["echo", "ft:support", "support"]
        assert zeta.refused_chat(model=name).status == 404


def test_what_administrators_load_is_everybodys(keyed: Any, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "roots" / "sql").parent
    write_adapter(tmp_path / "found" / "seen")
    with keyed(adapter_roots=(str(folder),), adapter_dir=str(tmp_path / "found")) as api:
        of(api, OPS).adapters.create("sql", "sql")
        for key in (ACME_ASK, ZETA):
            assert of(api, key).chat(model="sql") and of(api, key).chat(model="seen")


def test_a_model_stays_its_owners_when_its_job_goes_it_is_unloaded_and_loaded_and_the_server_restarts(
    keyed: Any, tmp_path: Path
) -> None:
    root = write_adapter(tmp_path / "roots" / "again").parent
    with keyed(adapter_roots=(str(root),)) as api:
        acme, ops = of(api, ACME), of(api, OPS)
        name = trained(acme)
        [job] = ids(acme.jobs.page())
        until(lambda: acme.http.delete(f"/v1/jobs/{job}").status_code == 200)
        assert (acme.chat(model=name), of(api, ZETA).refused_chat(model=name).status)[1] == 404
    with keyed(adapter_roots=(str(root),)) as api:
        acme, zeta, ops = of(api, ACME), of(api, ZETA), of(api, OPS)
        assert acme.chat(model=name) and zeta.refused_chat(model=name).status == 404
        succeeded_text(ops.adapters.unload(name))
        assert acme.refused_chat(model=name).status == 404
        succeeded_text(ops.adapters.load(name, "again"))
        assert acme.chat(model=name) and zeta.refused_chat(model=name).status == 404


def succeeded_text(reply: Any) -> None:
    assert reply.status_code == 200, reply.text


def test_what_a_job_publishes_after_a_restart_is_its_owners(keyed: Any) -> None:
    with keyed() as api:
        api.plan(steps=200, seconds=0.05, save_every=5)
        acme = of(api, ACME)
        id = acme.fine_tuning.create()["id"]
        until(lambda: acme.fine_tuning.checkpoints(id)["data"])
    with keyed() as api:
        api.plan(steps=10, seconds=0.01)
        acme, zeta = of(api, ACME), of(api, ZETA)
        job = acme.fine_tuning.wait(id, "succeeded")
        assert job["fine_tuned_model"] in acme.models() and list(zeta.models()) == ["echo"]
        [result] = job["result_files"]
        assert acme.http.get(f"/v1/files/{result}/content").status_code == 200
        assert zeta.http.get(f"/v1/files/{result}/content").status_code == 404


def test_a_model_answers_once_the_database_says_whose_it_is(keyed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with keyed() as api:
        models = api.http.parts[Inference].fine_tuned
        give = models.give
        refused: list[str] = []

        async def give_later(name: str, owner: str | None) -> None:
            if len(refused) < 2:
                refused.append(name)
                raise StoreUnavailable("away")
            await give(name, owner)

        monkeypatch.setattr(models, "give", give_later)
        name = trained(of(api, ACME))
        assert len(refused) == 2
        assert name in of(api, ACME).models() and list(of(api, ZETA).models()) == ["echo"]


def test_two_owners_with_one_suffix_have_two_models(keyed: Any) -> None:
    with keyed() as api:
        acme, zeta = of(api, ACME), of(api, ZETA)
        names = [trained(each, suffix="mine") for each in (acme, zeta)]
        assert len(set(names)) == 2
        assert [names[0] in acme.models(), names[0] in zeta.models()] == [True, False]
        assert [names[1] in acme.models(), names[1] in zeta.models()] == [False, True]


# ---- what is named


def test_a_job_goes_on_from_its_owners_model_only(keyed: Any) -> None:
    with keyed() as api:
        acme, zeta = of(api, ACME), of(api, ZETA)
        name = trained(acme)
        assert zeta.fine_tuning.post(model=name).status_code == 404
        assert trained(acme, model=name) != name


@pytest.mark.parametrize("name", ["adapters", "resume_from_checkpoint"])
def test_a_job_of_anothers_is_as_unknown_as_one_that_never_was(keyed: Any, name: str) -> None:
    with keyed() as api:
        acme, zeta = of(api, ACME), of(api, ZETA)
        id = acme.fine_tuning.wait(acme.fine_tuning.create()["id"])["id"]
        told = []
        for each in (id, "ftjob-nope"):
            value = [each] if name == "adapters" else each
            file = zeta.upload(LINE)
            error = zeta.jobs.refused("sft", {"model": "echo", "dataset": [file], name: value})
            told.append({**error, "message": error["message"].replace(each, "ID")})
        assert told[0] == told[1]
        assert told[0]["param"] == f"parameters.{name}"


def test_only_administrators_put_a_job_before_those_of_others(keyed: Any) -> None:
    with keyed() as api:
        body = {"type": "sft", "priority": 1, "parameters": {"model": "echo", "dataset": [of(api, ACME).upload()]}}
        refused = of(api, ACME).post("/v1/jobs", **body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (403, "priority")
        assert succeeded(of(api, OPS).post("/v1/jobs", **body))["priority"] == 1


def test_a_batch_answers_as_its_owner_and_its_results_are_theirs(keyed: Any) -> None:
    with keyed() as api:
        acme, zeta, ops, asks = of(api, ACME), of(api, ZETA), of(api, OPS), of(api, ACME_ASK)
        name = trained(acme)
        for each, answered in ((acme, 2), (asks, 2), (ops, 2), (zeta, 1)):
            batch = batch_of(each, chat("echo"), chat(name))
            assert batch["request_counts"] == {"total": 2, "completed": answered, "failed": 2 - answered}
            for field in ("output_file_id", "error_file_id"):
                if (file := batch.get(field)) is not None:
                    assert each.http.get(f"/v1/files/{file}/content").status_code == 200
                    others = [other for other in (acme, zeta) if other is not each and (other, each) != (acme, asks)]
                    assert {other.http.get(f"/v1/files/{file}").status_code for other in others} == {404}
        lines = zeta.http.get(f"/v1/files/{batch['error_file_id']}/content").text
        assert json.loads(lines)["response"]["body"]["error"]["code"] == "model_not_found"


def test_a_batch_that_goes_on_after_a_restart_is_still_its_owners(keyed: Any) -> None:
    engine = EchoEngine()
    with keyed(engine=engine) as api:
        name = trained(of(api, ACME))
        api.http.portal.call(engine.sleep)  # so that nothing is answered yet
        file = of(api, ZETA).upload(
            json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": chat(name)}) + "\n",
            purpose="batch",
        )
        body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        id = succeeded(of(api, ZETA).post("/v1/batches", **body))["id"]
    with keyed() as api:
        zeta = of(api, ZETA)
        batch = until(lambda: b if (b := zeta.http.get(f"/v1/batches/{id}").json())["status"] == "completed" else None)
        assert batch["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
        assert of(api, ACME).http.get(f"/v1/batches/{id}").status_code == 404


# ---- one at the same time as another


def test_a_file_that_is_read_while_it_is_deleted_is_read_to_its_end(keyed: Any) -> None:
    text = LINE * 200_000
    with keyed() as api:
        acme = of(api, ACME)
        file = acme.upload(text)
        with acme.http.stream("GET", f"/v1/files/{file}/content") as reply:
            assert of(api, ZETA).http.delete(f"/v1/files/{file}").status_code == 404
            assert acme.http.delete(f"/v1/files/{file}").status_code == 200
            assert sum(map(len, reply.iter_bytes())) == len(text)


def test_what_an_administrators_job_needs_is_kept_without_telling_whose_it_is(keyed: Any) -> None:
    with keyed() as api:
        acme, ops = of(api, ACME), of(api, OPS)
        id = acme.fine_tuning.wait(acme.fine_tuning.create()["id"])["id"]
        api.plan(steps=1000, seconds=0.05)
        user = ops.jobs.create("sft", {"model": "echo", "dataset": [ops.upload(LINE)], "adapters": [id]})["id"]
        refused = until(lambda: r if (r := acme.http.delete(f"/v1/jobs/{id}")).status_code == 409 else None)
        assert "Another job needs" in refused.text and user not in refused.text
        assert user in ops.http.delete(f"/v1/jobs/{id}").text
        succeeded(ops.jobs.move(user, "cancel"))
        until(lambda: acme.http.delete(f"/v1/jobs/{id}").status_code == 200)


# ---- servers without keys


def test_what_was_made_without_keys_is_nobodys_once_there_are_some(start: Start) -> None:
    with start() as api:
        name = trained(api)
        file = api.upload(LINE)
        [job] = ids(api.jobs.page())
        assert api.jobs.get(job)["owner"] is None
    with start(api_key=KEYS) as api:
        acme, ops = of(api, ACME), of(api, OPS)
        for path in (f"/v1/files/{file}", f"/v1/jobs/{job}", f"/v1/models/{name}"):
            assert [each.http.get(path).status_code for each in (acme, ops)] == [404, 200]
    with start() as api:
        assert api.jobs.get(job) and api.models()[name]


def test_without_keys_everybody_sees_what_keys_have_made(start: Start) -> None:
    with start(api_key=KEYS) as api:
        name = trained(of(api, ACME))
    with start() as api:
        assert api.models()[name] and api.chat(model=name)
        assert len(api.jobs.page()["data"]) == 1
