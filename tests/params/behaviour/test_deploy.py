"""Every parameter that `deploy` accepts with an engine changes something that can be seen; every other is refused by
name."""

import re
from pathlib import Path

import pytest

from engines.params.about import EVERY_ENGINE
from engines.params.deploy import DeployParams
from server import parts as server_parts
from server.commands.supported import refusals
from tests.params.behaviour.deploy import (
    Server,
    allowed,
    answered,
    asked,
    batch_slots,
    certified,
    chat,
    config,
    files,
    got,
    handed_to,
    kept_completions,
    lets_in,
    listens,
    logged,
    patience,
    queue,
    refused_beside_another,
    refused_of,
    stopped,
    streamed,
    uploaded,
    uploaded_in_parts,
    which_engine,
)
from tests.params.behaviour.table import UNGIVEN, Row, Two, another_value, apart
from tests.server.keys import FULL

MODEL = {"model": "org/m"}
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "f"}}]
JOB = {"type": "sft", "parameters": {"model": "m", "dataset": ["$FOLDER/other/rows.jsonl"]}}
OF_HUB = {"type": "sft", "parameters": {"model": "m", "dataset": ["org/set"]}}
PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}
KEYS = {"api_key": [FULL]}
ON_VLLM = MODEL | {"infer_backend": "vllm"}
NF4 = {"quant_method": "bnb", "quant_bits": 4}
NGRAM = {"method": "ngram", "num_speculative_tokens": 4}

OF_THE_SERVER = apart(
    MODEL,
    # how requests queue for the model
    infer_backend=Two("pt", "lmdeploy", which_engine),
    max_num_queued_reqs=Two(256, 3, queue),
    engine_start_timeout=Two(1800, 60, patience("start_seconds")),
    engine_watchdog_timeout=Two(300, 900, patience("step_seconds")),
    engine_max_restarts=Two(10, 0, patience("restarts")),
    batch_concurrency=Two(16, 8, batch_slots),
    # adapters
    adapters=Two([], ["$FOLDER/adapters/a"], got("/v1/models")),
    adapter_roots=Two(
        [], ["$FOLDER/adapters"], answered("/v1/load_lora_adapter", lora_name="a", lora_path="$FOLDER/adapters/a")
    ),
    adapter_dir=Two(UNGIVEN, "$FOLDER/adapters", answered("/v1/completions", model="b", prompt="hello")),
    # prompts, and what requests do not say
    chat_template=Two(UNGIVEN, "{{ messages[0].content }}", asked()),
    template=Two(UNGIVEN, "phi3", asked()),
    chat_template_kwargs=Two({"mood": "merry"}, {"mood": "sad"}, asked(), {"chat_template": "{{ mood }} I am"}),
    use_chat_template=Two(True, False, asked()),
    tools_prompt=Two("react_en", "react_zh", asked(tools=TOOLS)),
    system=Two(UNGIVEN, "Be brief.", asked()),
    tool_call_parser=Two("hermes", "none", chat(CALL, tools=TOOLS)),
    reasoning_parser=Two("deepseek_r1", "none", chat("<think>so</think>this")),
    max_new_tokens=Two(UNGIVEN, 3, asked("max_new_tokens")),
    temperature=Two(UNGIVEN, 0.5, asked("temperature")),
    top_k=Two(UNGIVEN, 5, asked("top_k")),
    top_p=Two(UNGIVEN, 0.5, asked("top_p")),
    repetition_penalty=Two(UNGIVEN, 1.5, asked("repetition_penalty")),
    num_beams=Two(1, 2, chat()),
    stop_words=Two([], ["ll"], chat()),
    # the server
    host=Two("127.0.0.1", "0.0.0.0", listens),
    port=Two(8000, 9000, listens),
    api_key=Two(UNGIVEN, [FULL], got("/v1/models")),
    api_key_file=Two(UNGIVEN, "$FOLDER/other/keys", got("/v1/models")),
    allow_anonymous=Two(False, True, lets_in, {"host": "0.0.0.0", "port": 0}),
    key_max_outputs=Two(UNGIVEN, 1, refused_of({"prompt": "hello", "n": 2}), KEYS),
    key_requests_per_minute=Two(UNGIVEN, 1, refused_of({"prompt": "hello"}, times=2), KEYS),
    key_tokens_per_minute=Two(UNGIVEN, 8, refused_of({"prompt": "hello"}, times=2), KEYS),
    key_max_running_requests=Two(UNGIVEN, 1, refused_beside_another, KEYS),
    metrics_auth=Two(False, True, lambda server: got("/metrics")(server)[0], KEYS),
    owned_by=Two("tuneserve", "us", got("/v1/models")),
    served_model_name=Two(UNGIVEN, "n", got("/v1/models")),
    verbose=Two(True, False, logged()),
    log_interval=Two(-1, 1, logged(seconds=2)),
    shutdown_timeout=Two(30, 2, stopped),
    sse_keep_alive_interval=Two(15, 0.01, streamed),
    max_body_size=Two(4, 0.0001, chat("hello" * 50)),
    root_path=Two("", "/llm", got("/llm/v1/models")),
    unknown_fields=Two("ignore", "refuse", chat(zeta=1)),
    max_file_size=Two(512, 0.001, uploaded),
    max_upload_size=Two(8192, 0.001, uploaded_in_parts),
    max_connections=Two(UNGIVEN, 5, handed_to(server_parts, "Connections", "most")),
    ssl_certfile=Two(UNGIVEN, "$FOLDER/server.pem", certified),
    ssl_keyfile=Two(UNGIVEN, "$FOLDER/server.key", certified, {"ssl_certfile": "$FOLDER/server.crt"}),
    ssl_keyfile_password=Two(
        "wrong", "open", certified, {"ssl_certfile": "$FOLDER/locked.crt", "ssl_keyfile": "$FOLDER/locked.key"}
    ),
    max_files=Two(10_000, 0, uploaded),
    max_files_size=Two(100, 0.000001, uploaded),
    keep_completions=Two(False, True, kept_completions),
    kept_days=Two(30, 7, handed_to(server_parts, "Limits", "seconds")),
    max_kept=Two(10_000, 0, handed_to(server_parts, "Limits", "number")),
    max_kept_size=Two(1, 0.5, handed_to(server_parts, "Limits", "bytes")),
    max_queued_batches=Two(100, 1, handed_to(server_parts, "Batches", "max_queued")),
    disk_reserve=Two(256, 1e12, uploaded),
    allowed_origins=Two([], ["http://page"], allowed),
    allowed_hosts=Two([], ["llm.example"], got("/v1/models", host="llm.example")),
    state_dir=Two("$FOLDER/state", "$FOLDER/here", files),
    without_state=Two(False, True, got("/v1/files")),
    database_url=Two(UNGIVEN, "sqlite:///$FOLDER/other/some.db", files),
    # jobs
    max_running_jobs=Two(1, 0, handed_to(server_parts, "Jobs", "max_running")),
    max_queued_jobs=Two(100, 1, handed_to(server_parts, "Jobs", "max_queued")),
    job_validation_timeout=Two(3600, 60, handed_to(server_parts, "Jobs", "validation_timeout")),
    job_retries=Two(2, 1, handed_to(server_parts, "Jobs", "retries")),
    job_gpu_memory=Two(4, 2, handed_to(server_parts, "Jobs", "gpu_memory")),
    job_memory=Two(UNGIVEN, 8, handed_to(server_parts, "LocalExecutor", "memory")),
    job_roots=Two([], ["$FOLDER/other"], answered("/v1/jobs", **JOB)),
    job_hub=Two(["off"], ["org/*"], answered("/v1/jobs", **OF_HUB)),
    python_graders=Two(False, True, answered("/v1/fine_tuning/alpha/graders/validate", grader=PYTHON)),
    job_hub_max_size=Two(20, 2, handed_to(server_parts, "JobHub", "max_bytes")),
)


def of_every_engine(engine: str) -> dict[str, Row]:
    return apart(
        MODEL | {"infer_backend": engine},
        model=Two("org/m", "org/n", config("model")),
        model_revision=Two(UNGIVEN, "v2", config("revision")),
        hub_token=Two(UNGIVEN, "t", config("token")),
        torch_dtype=Two(UNGIVEN, "float32", config("dtype")),
        max_length=Two(UNGIVEN, 64, config("max_model_len")),
        max_model_len=Two(UNGIVEN, 64, config("max_model_len")),
        max_num_seqs=Two(256, 8, config("max_num_seqs")),
        max_batch_size=Two(UNGIVEN, 8, config("max_num_seqs")),
        max_num_batched_tokens=Two(UNGIVEN, 64, config("max_num_batched_tokens")),
        block_size=Two(UNGIVEN, 32, config("block_size")),
        enable_prefix_caching=Two(True, False, config("enable_prefix_caching")),
        seed=Two(UNGIVEN, 42, config("seed")),
        max_logprobs=Two(20, 5, config("max_logprobs")),
        max_loras=Two(8, 2, config("max_loras")),
        max_lora_rank=Two(64, 32, config("max_lora_rank")),
    )


TABLES: dict[str, dict[str, Row]] = {
    "pt": of_every_engine("pt")
    | apart(
        MODEL,
        attn_impl=Two(UNGIVEN, "eager", config("attn_impl")),
        rope_scaling=Two(UNGIVEN, "linear", config("rope_scaling")),
        task_type=Two("causal_lm", "seq_cls", config("task_type")),
        device_map=Two("cpu", {"": "cpu"}, config("device_map")),
        kv_cache_memory=Two(UNGIVEN, 0.5, config("kv_cache_memory")),
        kv_cache_dtype=Two("auto", "int8_per_token_head", config("kv_cache_dtype")),
        gpu_memory_utilization=Two(0.9, 0.5, config("gpu_memory_utilization")),
        threads=Two(UNGIVEN, 1, config("threads")),
        max_cpu_loras=Two(UNGIVEN, 9, config("max_cpu_loras")),
        max_itl_slowdown=Two(2.0, 8.0, config("max_itl_slowdown")),
        speculative_config=Two(UNGIVEN, NGRAM, config("prompt_lookup")),
        quant_method=Two("bnb", "torchao", config("quantization"), {"quant_bits": 8}),
        quant_bits=Two(4, 8, config("quantization"), {"quant_method": "bnb"}),
        hqq_axis=Two(0, 1, config("quantization"), {"quant_method": "hqq", "quant_bits": 4}),
        bnb_4bit_compute_dtype=Two(UNGIVEN, "bfloat16", config("quantization"), NF4),
        bnb_4bit_quant_type=Two("nf4", "fp4", config("quantization"), NF4),
        bnb_4bit_use_double_quant=Two(True, False, config("quantization"), NF4),
        bnb_4bit_quant_storage=Two(UNGIVEN, "float32", config("quantization"), NF4),
    ),
    "vllm": of_every_engine("vllm")
    | apart(
        ON_VLLM,
        kv_cache_memory=Two(UNGIVEN, 0.5, config("kv_cache_memory")),
        kv_cache_dtype=Two("auto", "fp8", config("kv_cache_dtype")),
        gpu_memory_utilization=Two(0.9, 0.5, config("gpu_memory_utilization")),
        threads=Two(UNGIVEN, 1, config("threads")),
        tensor_parallel_size=Two(1, 2, config("tensor_parallel_size")),
        pipeline_parallel_size=Two(1, 2, config("pipeline_parallel_size")),
        disable_custom_all_reduce=Two(False, True, config("disable_custom_all_reduce")),
        enforce_eager=Two(False, True, config("enforce_eager")),
        enable_sleep_mode=Two(False, True, config("enable_sleep_mode")),
        speculative_config=Two(UNGIVEN, NGRAM, config("speculative_config")),
        quant_bits=Two(4, 8, config("torchao_bits"), {"quant_method": "torchao"}),
        vllm_max_lora_rank=Two(16, 32, config("max_lora_rank")),
    )
    | {"quant_method": Row(ON_VLLM, ON_VLLM | {"quant_method": "torchao", "quant_bits": 8}, config("torchao_bits"))},
    "lmdeploy": of_every_engine("lmdeploy")
    | apart(
        MODEL | {"infer_backend": "lmdeploy"},
        lmdeploy_backend=Two("pytorch", "turbomind", config("backend")),
        session_len=Two(UNGIVEN, 64, config("max_model_len")),
        tp=Two(1, 2, config("tp")),
        cache_max_entry_count=Two(0.8, 0.5, config("cache_max_entry_count")),
        quant_policy=Two(0, 8, config("quant_policy")),
        enforce_eager=Two(False, True, config("enforce_eager")),
    ),
}
"""Engine -> what its configuration is made of."""


@pytest.fixture(autouse=True)
def hqq_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.checkpoint.quantization.find_spec", lambda package: package)


@pytest.mark.parametrize("name", OF_THE_SERVER)
def test_a_parameter_of_the_server_changes_what_is_seen(tmp_path: Path, name: str) -> None:
    row = OF_THE_SERVER[name]
    one, again, two = (Server(given, tmp_path / at) for at, given in (("x", row.one), ("y", row.one), ("z", row.two)))

    assert refusals(one.params) == refusals(two.params) == []
    seen = plain(row.seen(one), one)
    assert seen == plain(row.seen(again), again), "else nothing would follow from a difference"
    assert seen != plain(row.seen(two), two)


def plain(seen: object, server: Server) -> str:
    """What was seen, without where, and without names drawn at random."""
    return re.sub("call_[0-9a-f]+", "call", repr(seen).replace(str(server.folder), "FOLDER"))


@pytest.mark.parametrize(("engine", "name"), [(engine, name) for engine, table in TABLES.items() for name in table])
def test_a_parameter_of_an_engine_changes_its_configuration(tmp_path: Path, engine: str, name: str) -> None:
    row = TABLES[engine][name]
    one, two = Server(row.one, tmp_path / "x"), Server(row.two, tmp_path / "y")

    assert refusals(one.params) == refusals(two.params) == []
    assert row.seen(one) != row.seen(two)


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        (engine, name)
        for engine in EVERY_ENGINE
        for name in DeployParams.model_fields
        if name not in OF_THE_SERVER and name not in TABLES[engine]
    ],
)
def test_every_other_parameter_is_refused_by_name(engine: str, name: str) -> None:
    try:
        other = another_value(DeployParams, name, None)
    except LookupError:
        return  # its type takes nothing but the default
    found = refusals(DeployParams.model_validate(MODEL | {"infer_backend": engine, name: other}))

    assert [line for line in found if line.startswith(f"--{name}: ")]


def test_a_default_that_is_given_asks_for_nothing() -> None:
    for name, field in DeployParams.model_fields.items():
        default = field.get_default(call_default_factory=True)
        assert refusals(DeployParams.model_validate(MODEL | {name: MODEL.get(name, default)})) == [], name
