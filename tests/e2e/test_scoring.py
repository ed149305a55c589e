"""Classes and scores from a real server: of a model with a head, and of what a job has just trained on a causal one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.engines.pt.adapters import classify_with_peft
from tests.engines.pt.tiny import CONFIGS, save
from tests.processes import engine_of
from tests.server.api import Api, Response, api_of
from tests.server.process import ServerProcess
from tests.until import PATIENCE, until

TEMPLATE = "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
FLAGS = ("--threads", "1", "--torch_dtype", "float32", "--device_map", "cpu")
ASKED = [{"role": "user", "content": "the red and the blue"}]
GOOD, BAD = "value numbers", "name"


def save_model(folder: Path, **options: Any) -> Path:
    config = CONFIGS["llama"]()
    config.id2label = {0: "sport", 1: "money", 2: "weather"}
    save(config, folder, tokenizer=True, **options)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@contextmanager
def serving(model: Path, *words: str) -> Iterator[tuple[ServerProcess, Api]]:
    with ServerProcess.ready("--model", str(model), *FLAGS, *words) as server, api_of(server) as api:
        yield server, api


def ids_of(model: Path, answer: str) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    messages = [*ASKED, {"role": "assistant", "content": answer}]
    ids: list[int] = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    return ids


def test_a_model_with_a_head_is_served_by_its_folder(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "topics", kind=AutoModelForSequenceClassification)
    text = "the red and the blue, " * 20
    with serving(folder, "--max_num_batched_tokens", "16") as (server, api):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
            body = {"model": "topics", "input": [text, "red"], "use_activation": False}
            answer: Any = client.post("/classify", body=body, cast_to=object)
            with pytest.raises(openai.BadRequestError, match="classifies texts and generates none"):
                client.chat.completions.create(model="topics", messages=[{"role": "user", "content": "red"}])
        assert api.models().keys() == {"topics"}
    plain = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    for told, said in zip(answer["data"], (text, "red"), strict=True):
        ids = AutoTokenizer.from_pretrained(folder)(said, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            expected = plain(input_ids=ids).logits[0]
        assert told["probs"] == pytest.approx(expected.tolist(), abs=1e-4)
        assert told["label"] == plain.config.id2label[int(expected.argmax())]


def scores(api: Api, model: str) -> Response:
    return api.post("/v1/score", model=model, text_1=ASKED, text_2=[GOOD, BAD])


def test_a_reward_model_that_a_job_trains_scores_beside_its_base_the_moment_it_is_done(tmp_path: Path) -> None:
    model = save_model(tmp_path / "base")
    row = {"messages": [*ASKED, {"role": "assistant", "content": GOOD}], "rejected_response": BAD}
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(row)}\n" * 8)
    training = {"model": "base", "dataset": ["pairs.jsonl"], "rlhf_type": "rm", "max_steps": 20, "learning_rate": 1e-2}
    with serving(model, "--job-roots", str(tmp_path)) as (server, api):
        job = api.jobs.wait(api.jobs.create("rlhf", training)["id"], "succeeded")
        reward = job["fine_tuned_model"]
        assert reward in api.models()
        good, bad = (one["score"] for one in scores(api, reward).json()["data"])
        assert good > bad, "what it was taught"
        # 1. As PEFT says it alone.
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (adapter / name).write_bytes(api.jobs.result(job["id"], name))
        expected = [classify_with_peft(model, adapter, 1, ids_of(model, answer))[0] for answer in (GOOD, BAD)]
        assert [good, bad] == pytest.approx(expected, abs=1e-3)
        # 2. The base chats, and the reward model does not.
        assert api.chat("red", model="base", max_tokens=4)["choices"]
        refusal = api.post("/v1/chat/completions", model=reward, messages=ASKED)
        assert refusal.status_code == 400 and "classifies texts" in refusal.json()["error"]["message"]
        # 3. An engine that was killed is started again, and knows it still.
        engine_of(server.pid).kill()
        until(lambda: scores(api, reward).status_code == 200)
        assert [one["score"] for one in scores(api, reward).json()["data"]] == pytest.approx([good, bad], abs=1e-5)
        # 4. Unloaded, it has gone.
        assert api.http.delete(f"/v1/models/{reward}").status_code == 200
        assert scores(api, reward).status_code == 404
