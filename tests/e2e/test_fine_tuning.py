"""The whole loop with OpenAI's SDK: upload a file, train, and ask the model that came out, while the server runs."""

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engines.pt.tiny import CONFIGS, save
from tests.identity import NAME, identity_lines
from tests.server.openai_schema import check
from tests.server.process import ServerProcess
from tests.until import PATIENCE, until

ENDED = ("succeeded", "failed", "cancelled")
TRAINING_SECONDS = 400
TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
)

Start = Callable[[Path], openai.OpenAI]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts a server for a model, as `base`; its client."""
    with contextlib.ExitStack() as stack:

        def start(model: Path) -> openai.OpenAI:
            flags = ["--served-model-name", "base", "--threads", "1"]
            server = stack.enter_context(ServerProcess.ready("--model", str(model), *flags))
            url = f"{server.url}/v1"
            return stack.enter_context(openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE))

        yield start


def upload(client: openai.OpenAI, text: str) -> str:
    return client.files.create(file=("data.jsonl", text.encode()), purpose="fine-tune").id


def wait(client: openai.OpenAI, job_id: str, so_far: Callable[[Any], object] = lambda job: job.status in ENDED) -> Any:
    """The job once it has come so far."""

    def look() -> Any:
        return client.fine_tuning.jobs.retrieve(job_id)

    return until(lambda: job if so_far(job := look()) else None, seconds=TRAINING_SECONDS, told=look)


def ask(client: openai.OpenAI, model: str) -> str:
    messages: list[Any] = [{"role": "user", "content": "Who are you?"}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0)
    return answer.choices[0].message.content


def passed(client: openai.OpenAI, model: str) -> list[int]:
    """Answers that passed and that failed in an eval of whether a model knows who it is."""
    config: Any = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    check: Any = {"type": "string_check", "name": "says it", "input": "{{sample.output_text}}", "operation": "like"}
    criteria: Any = [{**check, "reference": NAME}]
    made = client.evals.create(data_source_config=config, testing_criteria=criteria)
    rows = [{"item": {"asked": asked}} for asked in ("Who are you?", "What is your name?")]
    source: Any = {
        "type": "completions",
        "model": model,
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.asked}}"}]},
        "sampling_params": {"temperature": 0, "max_completion_tokens": 16},
        "source": {"type": "file_content", "content": rows},
    }
    run = client.evals.runs.create(made.id, data_source=source)

    def look() -> Any:
        return client.evals.runs.retrieve(run.id, eval_id=made.id)

    counts = until(lambda: now.result_counts if (now := look()).status == "completed" else None, told=look)
    return [counts.passed, counts.failed]


@pytest.mark.demo
def test_a_model_that_was_taught_who_it_is_says_so_at_once(start: Start, demo_model: Path) -> None:
    client = start(demo_model)
    before = ask(client, "base")
    # 1. Upload and train: what is not said is "auto".
    job = client.fine_tuning.jobs.create(
        model="base",
        training_file=upload(client, identity_lines()),
        suffix="marlow",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
    )
    assert (job.status, job.fine_tuned_model) == ("validating_files", None)
    # 2. Meanwhile the base model answers, and so does the first checkpoint.
    checkpoints = client.fine_tuning.jobs.checkpoints
    wait(client, job.id, lambda job: job.status in ENDED or checkpoints.list(job.id).data)
    assert ask(client, "base") == before
    assert ask(client, checkpoints.list(job.id).data[-1].fine_tuned_model_checkpoint)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
    # 3. What came out knows its name; the base model still does not.
    job = wait(client, job.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model.startswith("ft:base:tuneserve:marlow:")
    answer = ask(client, job.fine_tuned_model)
    assert NAME in answer
    assert NAME not in ask(client, "base") == before
    assert passed(client, "base") == [0, 2] and passed(client, job.fine_tuned_model) == [2, 0]
    # 4. The last checkpoint is the same model, and all are told, the newest first.
    found = checkpoints.list(job.id).data
    assert [checkpoint.step_number for checkpoint in found] == [45, 30, 15]
    assert ask(client, found[0].fine_tuned_model_checkpoint) == answer
    assert all(checkpoint.metrics.train_loss < 0.5 for checkpoint in found)
    # 5. `auto` is told as numbers, and what happened as events and as a file.
    numbers = {"batch_size": 4, "learning_rate_multiplier": 10.0, "n_epochs": 3}
    assert job.hyperparameters.model_dump(exclude_none=True) == numbers
    assert job.method.supervised.hyperparameters.model_dump(exclude_none=True) == numbers
    assert job.trained_tokens > 1000
    events: list[Any] = list(client.fine_tuning.jobs.list_events(job.id, limit=20))
    assert [event.data["step"] for event in events if event.type == "metrics"] == list(range(45, 0, -1))
    assert events[0].message == "The job has successfully completed"
    rows = list(csv.DictReader(client.files.content(job.result_files[0]).text.splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, 46))
    assert float(rows[0]["train_loss"]) > 1.5
    assert float(rows[-1]["train_loss"]) < 0.5
    # 6. Deleted, it answers no more.
    assert client.models.retrieve(job.fine_tuned_model).model_extra["parent"] == "base"
    client.models.delete(job.fine_tuned_model)
    with pytest.raises(openai.NotFoundError):
        ask(client, job.fine_tuned_model)


@pytest.fixture(scope="module")
def tiny(start: Start, tmp_path_factory: pytest.TempPathFactory) -> openai.OpenAI:
    folder = save(CONFIGS["llama"](), tmp_path_factory.mktemp("tiny") / "tiny", tokenizer=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return start(folder)


def test_dpo_moves_the_preference_and_its_model_answers(tiny: openai.OpenAI) -> None:
    job = tiny.fine_tuning.jobs.create(
        model="base",
        training_file=upload(tiny, preference_lines()),
        method={"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 4}}},
    )
    job = wait(tiny, job.id)
    assert job.status == "succeeded", job.error
    events: list[Any] = list(tiny.fine_tuning.jobs.list_events(job.id))
    margins = [event.data["rewards/margins"] for event in events if event.type == "metrics"]
    assert margins[0] > 0.1 > margins[-1]
    assert job.method.dpo.hyperparameters.beta == 0.1
    assert ask(tiny, job.fine_tuned_model) != ask(tiny, "base")


def test_a_fine_tuned_model_is_trained_on_from_what_it_had_learned(tiny: openai.OpenAI) -> None:
    file = upload(tiny, identity_lines())

    def train(model: str, **method: Any) -> Any:
        job = tiny.fine_tuning.jobs.create(model=model, training_file=file, suffix="more", seed=1, **method)
        job = wait(tiny, job.id)
        assert job.status == "succeeded", job.error
        return job

    def losses(job: Any) -> list[float]:
        events: list[Any] = list(tiny.fine_tuning.jobs.list_events(job.id, limit=100))
        return [event.data["train_loss"] for event in reversed(events) if event.type == "metrics"]

    epochs = {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 50}}
    first = train("base", method={"type": "supervised", "supervised": epochs})
    checkpoint = tiny.fine_tuning.jobs.checkpoints.list(first.id).data[-1].fine_tuned_model_checkpoint
    assert checkpoint.startswith(f"{first.fine_tuned_model}:ckpt-step-")
    for model in (first.fine_tuned_model, checkpoint):
        job = train(model, method={"type": "supervised", "supervised": epochs})
        assert (job.model, job.fine_tuned_model) == (model, f"ft:base:tuneserve:more:{job.id.removeprefix('ftjob-')}")
        assert losses(job)[0] < losses(first)[0] - 0.5
        assert losses(job)[-1] < losses(first)[-1]
        assert ask(tiny, job.fine_tuned_model)


def preference_lines() -> str:
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"the red {number}"}]},
            "preferred_output": [{"role": "assistant", "content": "the blue"}],
            "non_preferred_output": [{"role": "assistant", "content": "value"}],
        }
        for number in range(12)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_bad_line_fails_the_job_and_is_named(tiny: openai.OpenAI) -> None:
    good, *_ = identity_lines().splitlines()
    job = tiny.fine_tuning.jobs.create(model="base", training_file=upload(tiny, f"{good}\n{{broken\n"))
    job = wait(tiny, job.id)
    assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_training_file", "training_file")
    assert job.error.message.startswith("Line 2 of training_file.jsonl")
    assert (job.fine_tuned_model, job.trained_tokens, job.result_files) == (None, None, [])
    assert tiny.fine_tuning.jobs.list_events(job.id).data[0].level == "error"
    raw = tiny.fine_tuning.jobs.with_raw_response.retrieve(job.id).http_response.json()
    check("FineTuningJob", raw)
