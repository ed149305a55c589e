"""Every route, and what it answers to whom: what keys with each role may do, and what of one owner's another owner
finds. HEAD goes wherever GET does.

What the paths and bodies name belongs to `acme`, whose the keys `infer` and `train` are. `another` has both roles, and
another name.
"""

from dataclasses import dataclass
from typing import Any

OK, CREATED, REFUSED, NO_KEY, FORBIDDEN, MISSING, CONFLICT = 200, 201, 400, 401, 403, 404, 409
CALLERS = ("nobody", "metrics", "infer", "train", "admin", "another")
Statuses = tuple[int, int, int, int, int, int]

PUBLIC: Statuses = (OK, OK, OK, OK, OK, OK)
EVERYBODY: Statuses = (NO_KEY, FORBIDDEN, OK, OK, OK, OK)
ALL_ROLES: Statuses = (NO_KEY, FORBIDDEN, FORBIDDEN, FORBIDDEN, FORBIDDEN, FORBIDDEN)
ASKING: Statuses = (NO_KEY, FORBIDDEN, OK, FORBIDDEN, FORBIDDEN, OK)
NO_HEAD: Statuses = (NO_KEY, FORBIDDEN, REFUSED, FORBIDDEN, FORBIDDEN, REFUSED)
ACMES_HEADLESS: Statuses = (NO_KEY, FORBIDDEN, REFUSED, FORBIDDEN, FORBIDDEN, MISSING)
ADMIN: Statuses = (NO_KEY, FORBIDDEN, FORBIDDEN, FORBIDDEN, OK, FORBIDDEN)
TRAINING: Statuses = (NO_KEY, FORBIDDEN, FORBIDDEN, OK, OK, OK)
ACMES_ASKING: Statuses = (NO_KEY, FORBIDDEN, OK, FORBIDDEN, FORBIDDEN, MISSING)
ACMES_MODEL: Statuses = (NO_KEY, FORBIDDEN, OK, OK, OK, MISSING)
ACMES_TRAINING: Statuses = (NO_KEY, FORBIDDEN, FORBIDDEN, OK, OK, MISSING)
ACMES_TRAINING_FILE: Statuses = (NO_KEY, FORBIDDEN, MISSING, OK, OK, MISSING)
ACMES_BATCH: Statuses = (NO_KEY, FORBIDDEN, OK, FORBIDDEN, OK, MISSING)
MADE: Statuses = (NO_KEY, FORBIDDEN, CREATED, FORBIDDEN, CREATED, CREATED)
ACMES_MADE: Statuses = (NO_KEY, FORBIDDEN, CREATED, FORBIDDEN, CREATED, MISSING)
NOT_AS_IT_IS: Statuses = (NO_KEY, FORBIDDEN, FORBIDDEN, CONFLICT, CONFLICT, MISSING)


@dataclass(frozen=True, kw_only=True)
class Row:
    method: str
    path: str
    statuses: Statuses
    """What each of CALLERS gets."""
    body: dict[str, Any] | None = None
    """With `{file_id}` and the like in its texts."""
    form: dict[str, str] | None = None
    """Of an upload, in place of a body."""
    file: str = "file"
    """What the form calls its file."""

    @property
    def id(self) -> str:
        return f"{self.method} {self.path}{'' if self.body is None else f' {sorted(self.body.items())}'}"


def row(method: str, path: str, statuses: Statuses, **sent: Any) -> Row:
    return Row(method=method, path=path, statuses=statuses, **sent)


MESSAGES = [{"role": "user", "content": "a"}]
SFT = {"type": "sft", "parameters": {"model": "echo", "dataset": ["{file_id}"]}}
MERGE = {"type": "merge", "parameters": {"model": "echo", "adapters": ["{done_job_id}"]}}
BATCH = {"input_file_id": "{input_id}", "endpoint": "/v1/embeddings", "completion_window": "24h"}
UPLOAD = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 1, "mime_type": "text/jsonl"}
EXPORT = {"purpose": "fine-tune", "metadata": {"tag": "{completion_tag}"}}

CHECK = {"type": "string_check", "name": "check", "input": "a", "reference": "a", "operation": "eq"}
JUDGE = {"type": "score_model", "name": "judge", "input": MESSAGES, "model": "{model}"}
EVAL = {"data_source_config": {"type": "custom", "item_schema": {"type": "object"}}, "testing_criteria": [CHECK]}
JUDGED = {**EVAL, "testing_criteria": [JUDGE]}
JSONL = {"data_source": {"type": "jsonl", "source": {"type": "file_id", "id": "{rows_id}"}}}
SAMPLED = {
    "data_source": {
        "type": "completions",
        "model": "{model}",
        "input_messages": {"type": "template", "template": MESSAGES},
        "source": {"type": "file_content", "content": [{"item": {}}]},
    }
}

ROWS = (
    # ---- the server itself
    row("GET", "/health", PUBLIC),
    row("GET", "/ping", PUBLIC),
    row("POST", "/ping", PUBLIC),
    row("GET", "/ready", PUBLIC),
    row("GET", "/metrics", PUBLIC),
    row("GET", "/version", EVERYBODY),
    row("GET", "/openapi.json", EVERYBODY),
    row("GET", "/docs", ALL_ROLES),
    row("GET", "/docs/oauth2-redirect", ALL_ROLES),
    row("GET", "/redoc", ALL_ROLES),
    row("POST", "/sleep", ADMIN),
    row("POST", "/wake_up", ADMIN),
    row("GET", "/is_sleeping", ADMIN),
    # ---- answers
    row("POST", "/v1/chat/completions", ASKING, body={"model": "echo", "messages": MESSAGES}),
    row("POST", "/v1/chat/completions", ASKING, body={"model": "{alias}", "messages": MESSAGES}),
    row("POST", "/v1/chat/completions", ACMES_ASKING, body={"model": "{model}", "messages": MESSAGES}),
    row("POST", "/v1/chat/completions", ACMES_ASKING, body={"model": "{checkpoint}", "messages": MESSAGES}),
    row("POST", "/v1/chat/completions", ACMES_ASKING, body={"model": "echo:{model}", "messages": MESSAGES}),
    row("POST", "/v1/completions", ASKING, body={"model": "echo", "prompt": "a"}),
    row("POST", "/v1/completions", ACMES_ASKING, body={"model": "{model}", "prompt": "a"}),
    row("POST", "/v1/responses", ASKING, body={"model": "echo", "input": "a"}),
    row("POST", "/v1/responses", ACMES_ASKING, body={"model": "{model}", "input": "a"}),
    row("GET", "/v1/responses/{response_id}", ACMES_BATCH),
    row("GET", "/v1/responses/{response_id}/input_items", ACMES_BATCH),
    row("DELETE", "/v1/responses/{response_id}", ACMES_BATCH),
    row("POST", "/v1/responses/{response_id}/cancel", ACMES_ASKING),
    row("POST", "/v1/responses/compact", (NO_KEY, FORBIDDEN, REFUSED, FORBIDDEN, FORBIDDEN, REFUSED)),
    row("POST", "/v1/responses/input_tokens", ASKING, body={"input": "a"}),
    row("POST", "/v1/responses/input_tokens", ACMES_ASKING, body={"model": "{model}", "input": "a"}),
    row("POST", "/v1/embeddings", ASKING, body={"model": "echo", "input": "a"}),
    row("POST", "/v1/embeddings", ACMES_ASKING, body={"model": "{model}", "input": "a"}),
    row("POST", "/v1/classify", NO_HEAD, body={"model": "echo", "input": "a"}),
    row("POST", "/v1/classify", ACMES_HEADLESS, body={"model": "{model}", "input": "a"}),
    row("POST", "/classify", NO_HEAD, body={"model": "echo", "input": "a"}),
    row("POST", "/v1/score", ASKING, body={"model": "echo", "text_1": "a", "text_2": "b"}),
    row("POST", "/v1/score", ACMES_ASKING, body={"model": "{model}", "text_1": "a", "text_2": "b"}),
    row("POST", "/score", ASKING, body={"model": "echo", "text_1": "a", "text_2": "b"}),
    row("POST", "/v1/rerank", ASKING, body={"model": "echo", "query": "a", "documents": ["b"]}),
    row("POST", "/v1/rerank", ACMES_ASKING, body={"model": "{model}", "query": "a", "documents": ["b"]}),
    row("POST", "/v2/rerank", ASKING, body={"model": "echo", "query": "a", "documents": ["b"]}),
    row("POST", "/rerank", ASKING, body={"model": "echo", "query": "a", "documents": ["b"]}),
    row("POST", "/v1/messages", ASKING, body={"model": "echo", "max_tokens": 9, "messages": MESSAGES}),
    row("POST", "/v1/messages", ACMES_ASKING, body={"model": "{model}", "max_tokens": 9, "messages": MESSAGES}),
    row("POST", "/v1/messages/count_tokens", ASKING, body={"model": "echo", "messages": MESSAGES}),
    row("POST", "/v1/messages/count_tokens", ACMES_ASKING, body={"model": "{model}", "messages": MESSAGES}),
    row("POST", "/tokenize", ASKING, body={"prompt": "a"}),
    row("POST", "/tokenize", ACMES_ASKING, body={"model": "{model}", "prompt": "a"}),
    row("POST", "/detokenize", ASKING, body={"tokens": [97]}),
    row("POST", "/detokenize", ACMES_ASKING, body={"model": "{model}", "tokens": [97]}),
    # ---- kept answers
    row("GET", "/v1/chat/completions", (NO_KEY, FORBIDDEN, OK, FORBIDDEN, OK, OK)),
    row("POST", "/v1/chat/completions/export", (NO_KEY, FORBIDDEN, REFUSED, FORBIDDEN, OK, REFUSED), body=EXPORT),
    row("GET", "/v1/chat/completions/{completion_id}", ACMES_BATCH),
    row("POST", "/v1/chat/completions/{completion_id}", ACMES_BATCH, body={"metadata": {"a": "b"}}),
    row("DELETE", "/v1/chat/completions/{completion_id}", ACMES_BATCH),
    row("GET", "/v1/chat/completions/{completion_id}/messages", ACMES_BATCH),
    row("POST", "/v1/conversations", (NO_KEY, FORBIDDEN, OK, FORBIDDEN, OK, OK), body={"items": MESSAGES}),
    row("GET", "/v1/conversations/{conversation_id}", ACMES_BATCH),
    row("POST", "/v1/conversations/{conversation_id}", ACMES_BATCH, body={"metadata": {"a": "b"}}),
    row("DELETE", "/v1/conversations/{conversation_id}", ACMES_BATCH),
    row("POST", "/v1/conversations/{conversation_id}/items", ACMES_BATCH, body={"items": MESSAGES}),
    row("GET", "/v1/conversations/{conversation_id}/items", ACMES_BATCH),
    row("GET", "/v1/conversations/{conversation_id}/items/{item_id}", ACMES_BATCH),
    row("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}", ACMES_BATCH),
    # ---- models
    row("GET", "/v1/models", EVERYBODY),
    row("GET", "/v1/models/{model:path}", ACMES_MODEL),
    row("DELETE", "/v1/models/{model:path}", ACMES_TRAINING),
    row("GET", "/v1/adapters", ADMIN),
    row("POST", "/v1/adapters", ADMIN, body={"name": "new", "path": "adapter", "replace": True}),
    row("POST", "/v1/load_lora_adapter", ADMIN, body={"lora_name": "{new}", "lora_path": "adapter"}),
    row("POST", "/v1/unload_lora_adapter", ADMIN, body={"lora_name": "{name}"}),
    row("GET", "/v1/adapters/{name:path}", ADMIN),
    row("DELETE", "/v1/adapters/{name:path}", ADMIN),
    row("POST", "/v1/adapters/{alias:path}/alias", ADMIN, body={"target": "{model}"}),
    # ---- files
    row("POST", "/v1/files", (NO_KEY, FORBIDDEN, REFUSED, OK, OK, OK), form={"purpose": "fine-tune"}),
    row("POST", "/v1/files", (NO_KEY, FORBIDDEN, OK, REFUSED, OK, OK), form={"purpose": "batch"}),
    row("POST", "/v1/files", EVERYBODY, form={"purpose": "evals"}),
    row("GET", "/v1/files", EVERYBODY),
    row("GET", "/v1/files/{file_id}", ACMES_TRAINING_FILE),
    row("GET", "/v1/files/{file_id}/content", ACMES_TRAINING_FILE),
    row("DELETE", "/v1/files/{file_id}", ACMES_TRAINING_FILE),
    row("POST", "/v1/uploads", (NO_KEY, FORBIDDEN, REFUSED, OK, OK, OK), body=UPLOAD),
    row("POST", "/v1/uploads", (NO_KEY, FORBIDDEN, OK, REFUSED, OK, OK), body={**UPLOAD, "purpose": "batch"}),
    row("POST", "/v1/uploads/{upload_id}/parts", ACMES_TRAINING_FILE, form={}, file="data"),
    row("POST", "/v1/uploads/{upload_id}/complete", ACMES_TRAINING_FILE, body={"part_ids": ["{part_id}"]}),
    row("POST", "/v1/uploads/{upload_id}/cancel", ACMES_TRAINING_FILE),
    # ---- batches
    row("POST", "/v1/batches", ACMES_BATCH, body=BATCH),
    row("GET", "/v1/batches", (NO_KEY, FORBIDDEN, OK, FORBIDDEN, OK, OK)),
    row("GET", "/v1/batches/{batch_id}", ACMES_BATCH),
    row("POST", "/v1/batches/{batch_id}/cancel", ACMES_BATCH),
    # ---- evals
    row("POST", "/v1/evals", MADE, body=EVAL),
    row("POST", "/v1/evals", ACMES_MADE, body=JUDGED),
    row("GET", "/v1/evals", (NO_KEY, FORBIDDEN, OK, FORBIDDEN, OK, OK)),
    row("GET", "/v1/evals/{eval_id}", ACMES_BATCH),
    row("POST", "/v1/evals/{eval_id}", ACMES_BATCH, body={"name": "new"}),
    row("DELETE", "/v1/evals/{eval_id}", ACMES_BATCH),
    row("POST", "/v1/evals/{eval_id}/runs", ACMES_MADE, body=JSONL),
    row("POST", "/v1/evals/{eval_id}/runs", ACMES_MADE, body=SAMPLED),
    row("GET", "/v1/evals/{eval_id}/runs", ACMES_BATCH),
    row("GET", "/v1/evals/{eval_id}/runs/{run_id}", ACMES_BATCH),
    row("POST", "/v1/evals/{eval_id}/runs/{run_id}", ACMES_BATCH),
    row("POST", "/v1/evals/{eval_id}/runs/{run_id}/cancel", ACMES_BATCH),
    row("DELETE", "/v1/evals/{eval_id}/runs/{run_id}", ACMES_BATCH),
    row("GET", "/v1/evals/{eval_id}/runs/{run_id}/output_items", ACMES_BATCH),
    row("GET", "/v1/evals/{eval_id}/runs/{run_id}/output_items/{output_item_id}", ACMES_BATCH),
    # ---- fine-tuning
    row("POST", "/v1/fine_tuning/jobs", ACMES_TRAINING, body={"model": "echo", "training_file": "{file_id}"}),
    row("POST", "/v1/fine_tuning/jobs", ACMES_TRAINING, body={"model": "{model}", "training_file": "{file_id}"}),
    row("GET", "/v1/fine_tuning/jobs", TRAINING),
    row("POST", "/v1/fine_tuning/alpha/graders/run", TRAINING, body={"grader": CHECK, "model_sample": "a"}),
    row("POST", "/v1/fine_tuning/alpha/graders/validate", TRAINING, body={"grader": CHECK}),
    row("POST", "/v1/fine_tuning/alpha/graders/validate", ACMES_TRAINING, body={"grader": JUDGE}),
    row("GET", "/v1/fine_tuning/jobs/{fine_tuning_job_id}", ACMES_TRAINING),
    row("POST", "/v1/fine_tuning/jobs/{fine_tuning_job_id}/cancel", ACMES_TRAINING),
    row("POST", "/v1/fine_tuning/jobs/{fine_tuning_job_id}/pause", ACMES_TRAINING),
    row("POST", "/v1/fine_tuning/jobs/{fine_tuning_job_id}/resume", NOT_AS_IT_IS),
    row("GET", "/v1/fine_tuning/jobs/{fine_tuning_job_id}/events", ACMES_TRAINING),
    row("GET", "/v1/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints", ACMES_TRAINING),
    # ---- jobs
    row("POST", "/v1/jobs", ACMES_TRAINING, body=SFT),
    row("POST", "/v1/jobs", ACMES_TRAINING, body=MERGE),
    row("GET", "/v1/jobs", TRAINING),
    row("GET", "/v1/jobs/{job_id}", ACMES_TRAINING),
    row("DELETE", "/v1/jobs/{job_id}", ACMES_TRAINING),
    row("POST", "/v1/jobs/{job_id}/cancel", ACMES_TRAINING),
    row("POST", "/v1/jobs/{job_id}/pause", ACMES_TRAINING),
    row("POST", "/v1/jobs/{job_id}/resume", NOT_AS_IT_IS),
    row("POST", "/v1/jobs/{job_id}/retry", NOT_AS_IT_IS),
    row("GET", "/v1/jobs/{job_id}/events", ACMES_TRAINING),
    row("GET", "/v1/jobs/{job_id}/metrics", ACMES_TRAINING),
    row("GET", "/v1/jobs/{job_id}/logs", ACMES_TRAINING),
    row("GET", "/v1/jobs/{job_id}/artifacts", ACMES_TRAINING),
    row("GET", "/v1/jobs/{job_id}/artifacts/{path:path}", ACMES_TRAINING),
)
