"""The servers that are compared: how each is installed, started and asked, so that all do the same work."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.environments import Environment, LlamaCpp, Vllm, VllmZentorch
from benchmarks.workload import MODES, OUTPUT_TOKENS, PROMPT_TOKENS

MOST_AT_ONCE = 32
NEVER = -1
"""As an end-of-sequence token: one that no model yields."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all servers of one run have in common."""

    model: str
    """A folder."""
    dtype: str
    threads: int
    port: int
    prompt_tokens: int = PROMPT_TOKENS
    output_tokens: int = OUTPUT_TOKENS

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    title: str
    command: Callable[[Setting], list[str]]
    environment: Environment | None = None
    """None: ours."""
    http: bool = True
    """False: the command itself is the driver."""
    model_name: Callable[[Setting], str] = lambda setting: "bench"
    variables: dict[str, str] = field(default_factory=dict)
    body: Callable[[dict[str, float]], dict[str, Any]] = lambda sampling: {}
    """What a request needs besides, given its sampling, to be of full length and sampled as asked."""
    modes: tuple[str, ...] = tuple(MODES)
    one_mode: bool = False
    """It keeps the sampling of its first request for all: it is started anew for each mode."""
    most: int = MOST_AT_ONCE
    """Above this concurrency it only queues, and is not measured."""


TUNESERVE = "from server.commands.cli import main; raise SystemExit(main())"
"""The command `tuneserve`, also where the project itself is not installed."""


def ours(setting: Setting) -> list[str]:
    return [
        *(sys.executable, "-c", TUNESERVE, "deploy", "--model", setting.model, "--served_model_name", "bench"),
        *("--host", "127.0.0.1", "--port", str(setting.port)),
        *("--torch_dtype", setting.dtype, "--threads", str(setting.threads)),
    ]


def ours_over_vllm(setting: Setting) -> list[str]:
    """As `vllm_serve`: the same vLLM, as many sequences, as long a context, and no adapters."""
    return [
        *(*ours(setting), "--infer_backend", "vllm", "--max_loras", "0"),
        *("--max_model_len", "4096", "--max_num_seqs", "64", "--kv_cache_memory", "2"),
    ]


def engine_alone(setting: Setting) -> list[str]:
    return _module("benchmarks.engine_alone", setting)


def static_generate(setting: Setting) -> list[str]:
    return _module("benchmarks.static_generate", setting)


def _module(name: str, setting: Setting) -> list[str]:
    return [sys.executable, "-m", name, setting.model, setting.dtype, str(setting.threads)]


TRANSFORMERS = Environment("transformers", ("transformers[serving]==5.23.0", "accelerate==1.15.0"))
SWIFT = Environment("swift", ("ms-swift==4.6.0", "bitsandbytes==0.50.2", "tensorboard"))
VLLM = Vllm("vllm", ())
ZENTORCH = VllmZentorch("vllm-zentorch", ("zentorch==2.13.0.2",))
LLAMACPP = LlamaCpp("llamacpp", ())


def transformers_serve(setting: Setting) -> list[str]:
    return [
        *(TRANSFORMERS.program("transformers"), "serve", setting.model, "--device", "cpu", "--dtype", setting.dtype),
        *("--host", "127.0.0.1", "--port", str(setting.port)),
    ]


def transformers_batching(setting: Setting) -> list[str]:
    """Its cache is sized to hold everything at once, as ours is: at its defaults it takes most of the memory."""
    cache = ("--cb-block-size", "32", "--cb-num-blocks", "1024", "--cb-max-batch-tokens", "256")
    return [*transformers_serve(setting), "--continuous-batching", *cache]


def transformers_body(sampling: dict[str, float]) -> dict[str, Any]:
    greedy = sampling["temperature"] == 0
    choice = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, **sampling}
    return {"generation_config": json.dumps({"eos_token_id": NEVER, "pad_token_id": 0, **choice})}


def swift_deploy(setting: Setting) -> list[str]:
    return [
        *(SWIFT.program("swift"), "deploy", "--model", setting.model, "--model_type", "llama", "--template", "chatml"),
        *("--infer_backend", "pt", "--served_model_name", "bench", "--use_hf", "true"),
        *("--host", "127.0.0.1", "--port", str(setting.port)),
        *("--torch_dtype", setting.dtype, "--max_batch_size", str(MOST_AT_ONCE)),
    ]


def vllm_serve(setting: Setting, environment: Environment = VLLM) -> list[str]:
    return [
        *(
            environment.program("vllm"),
            "serve",
            setting.model,
            "--served-model-name",
            "bench",
            "--dtype",
            setting.dtype,
        ),
        *("--host", "127.0.0.1", "--port", str(setting.port), "--max-model-len", "4096", "--max-num-seqs", "64"),
    ]


def vllm_zentorch_serve(setting: Setting) -> list[str]:
    return vllm_serve(setting, ZENTORCH)


def llamacpp_serve(setting: Setting) -> list[str]:
    tokens = setting.prompt_tokens + setting.output_tokens
    return [*_module("benchmarks.llamacpp_serve", setting), str(setting.port), str(tokens)]


def ignore_eos(sampling: dict[str, float]) -> dict[str, Any]:
    return {"ignore_eos": True}


def all_candidates(sampling: dict[str, float]) -> dict[str, Any]:
    """llama.cpp leaves out tokens by rules of its own, where nobody asks for none."""
    return {"ignore_eos": True, "top_k": 0, "min_p": 0.0, "cache_prompt": False}


VLLM_VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

SERVERS = (
    Server("tuneserve", "tuneserve", ours, body=ignore_eos),
    Server("tuneserve-vllm", "tuneserve over vLLM", ours_over_vllm, body=ignore_eos),
    Server("engine", "tuneserve's engine alone, no HTTP", engine_alone, http=False, modes=("greedy",)),
    Server("generate", "transformers generate, static batch, no HTTP", static_generate, http=False, modes=("greedy",)),
    Server(
        "transformers",
        "transformers serve",
        transformers_serve,
        environment=TRANSFORMERS,
        model_name=lambda setting: setting.model,
        body=transformers_body,
        most=8,
    ),
    Server(
        "transformers-cb",
        "transformers serve --continuous-batching",
        transformers_batching,
        environment=TRANSFORMERS,
        model_name=lambda setting: setting.model,
        body=transformers_body,
        one_mode=True,
    ),
    Server("swift", "ms-swift deploy", swift_deploy, environment=SWIFT),
    Server(
        "vllm",
        "vLLM",
        vllm_serve,
        environment=VLLM,
        variables=VLLM_VARIABLES,
        body=ignore_eos,
    ),
    Server(
        "vllm-zentorch",
        "vLLM with zentorch",
        vllm_zentorch_serve,
        environment=ZENTORCH,
        variables=VLLM_VARIABLES,
        body=ignore_eos,
    ),
    Server("llamacpp", "llama.cpp", llamacpp_serve, environment=LLAMACPP, body=all_candidates),
)


def with_port(setting: Setting, server: Server) -> Setting:
    """A port for each: the last server's closed connections linger on its own, and some then take another unasked."""
    return replace(setting, port=setting.port + SERVERS.index(server))
