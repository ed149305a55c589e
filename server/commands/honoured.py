"""Which parameters of `deploy` the built parts read. One that none of them reads is refused, never ignored."""

from pathlib import Path

from engines.adapters.source import name_adapters
from engines.errors import InvalidAdapter, InvalidRequest
from engines.params.deploy import DeployParams

HONOURED: frozenset[str] = frozenset(
    {
        # which model, and how requests queue for it
        "model", "model_revision", "hub_token", "infer_backend", "max_num_queued_reqs", "max_num_seqs",
        "max_batch_size", "max_logprobs",
        # adapters
        "adapters", "adapter_roots", "adapter_dir", "state_dir",
        # prompts, and what requests do not say
        "chat_template", "use_chat_template", "system", "tool_call_parser", "reasoning_parser", "max_new_tokens",
        "temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "stop_words",
        # the server
        "host", "port", "api_key", "metrics_auth", "owned_by", "served_model_name", "verbose", "log_interval",
        "shutdown_timeout", "sse_keep_alive_interval", "max_body_size", "allowed_origins",
        "database_url", "max_file_size", "batch_concurrency", "max_running_jobs", "job_retries", "job_gpu_memory",
        "job_roots",
    }
)  # fmt: skip
"""Whatever the engine. A test holds this set to the code of `server` and `engines`: what is here is read there, and the
other way round."""

EVERY_ENGINE = frozenset(
    {
        "model", "model_revision", "hub_token", "torch_dtype", "max_length", "max_model_len", "max_num_seqs",
        "max_batch_size", "max_num_batched_tokens", "block_size", "enable_prefix_caching", "seed", "max_logprobs",
        "max_loras",
    }
)  # fmt: skip
ENGINES: dict[str, frozenset[str]] = {
    "pt": EVERY_ENGINE
    | {
        "attn_impl", "rope_scaling", "device_map", "kv_cache_memory", "gpu_memory_utilization", "threads",
        "max_cpu_loras", "max_lora_rank",
    },
    "vllm": EVERY_ENGINE
    | {
        "gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size", "disable_custom_all_reduce",
        "enforce_eager", "vllm_max_lora_rank", "max_lora_rank", "kv_cache_memory", "threads", "enable_sleep_mode",
    },
    "lmdeploy": EVERY_ENGINE
    | {
        "tp", "session_len", "cache_max_entry_count", "quant_policy", "lmdeploy_backend",
        "enforce_eager", "max_lora_rank",
    },
}  # fmt: skip
"""By engine, what its configuration is made of: `engines/process/config.py` and `engines/<engine>/config.py`, to which the same test
holds each."""

BUILT_CHOICES: dict[str, str] = {"task_type": "causal_lm", "template_backend": "jinja"}
"""The one choice that is built, of parameters that have more."""

UNREAD = (
    frozenset(DeployParams.model_fields) - HONOURED - frozenset(BUILT_CHOICES) - frozenset().union(*ENGINES.values())
)
"""What is refused in any value but its default."""

SAID_BY_REQUESTS = frozenset({"stream", "logprobs"})
"""What OpenAI's API leaves to each request, and answers without where it does not ask."""
FOR_IMAGES = frozenset({"limit_mm_per_prompt", "vision_batch_size"})

TWINS = (
    ("max_batch_size", "max_num_seqs"),
    ("max_length", "max_model_len"),
    ("session_len", "max_model_len"),
    ("session_len", "max_length"),
    ("vllm_max_lora_rank", "max_lora_rank"),
)
"""Parameters that mean the same to an engine."""


def refusals(params: DeployParams) -> list[str]:
    """One line for each parameter that was given in vain, and for a model that was not given."""
    given = params.model_fields_set
    missing = [] if params.model else ["--model: name the model to serve, a folder or an id on the hub"]
    vain = [reason for name in sorted(given) if (reason := _refusal(params, name))]
    twice = [f"--{one} and --{other} mean the same here: give one" for one, other in TWINS if {one, other} <= given]
    unused = "chat_template" in given and not params.use_chat_template
    plain = ["--chat_template: nothing uses it where --use_chat_template is false"] if unused else []
    return missing + vain + twice + plain + _adapter_refusals(params) + _database_refusals(params)


def _database_refusals(params: DeployParams) -> list[str]:
    if params.database_url is None:
        return []
    from server.store.address import read_address

    try:
        read_address(params.database_url)
    except InvalidRequest as error:
        return [f"--database_url: {error.message}"]
    return []


def _adapter_refusals(params: DeployParams) -> list[str]:
    """Folders that are not there, and adapters that cannot be told apart."""
    folders = [("adapter_roots", root) for root in params.adapter_roots]
    folders += [("job_roots", root) for root in params.job_roots]
    folders += [] if params.adapter_dir is None else [("adapter_dir", params.adapter_dir)]
    lines = [f"--{name}: {path!r} is not a folder" for name, path in folders if not Path(path).expanduser().is_dir()]
    try:
        name_adapters(params.adapters)
    except InvalidAdapter as error:
        lines.append(f"--adapters: {error.message}")
    return lines


def _refusal(params: DeployParams, name: str) -> str | None:
    value = getattr(params, name)
    if name in BUILT_CHOICES:
        return (
            None
            if value == BUILT_CHOICES[name]
            else f"--{name}: {value} is not built yet; choose {BUILT_CHOICES[name]}"
        )
    if name in HONOURED | ENGINES[params.infer_backend] or value == DeployParams.model_fields[name].get_default():
        return None
    if name in SAID_BY_REQUESTS:
        return f"--{name}: a request over HTTP says so itself"
    if name in FOR_IMAGES:
        return f"--{name}: images are not supported in this version: leave it out"
    readers = [engine for engine, names in ENGINES.items() if name in names]
    if readers:
        return f"--{name}: the engine {params.infer_backend} does not know it; it is for {' and '.join(readers)}"
    return f"--{name}: nothing in this version of deploy depends on it"
