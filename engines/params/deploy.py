"""Serving a model over HTTP."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from engines.params.about import DEPLOY, EVERY_ENGINE, PAGE, About
from engines.params.base import Params, Strings, listed
from engines.params.infer import InferParams
from engines.params.parsers import ParserParams
from engines.params.template import ChatTemplateParams

Origins = Annotated[
    tuple[Annotated[str, Field(pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^/\s]*)$")], ...], BeforeValidator(listed)
]
"""Origins as browsers write them: a scheme and a host, without a path. `*` is all."""
Hosts = Annotated[tuple[Annotated[str, Field(pattern=r"^(\*|[\w.-]+)$")], ...], BeforeValidator(listed)]
"""Names without a scheme or a port. `*` is all."""
REPOSITORIES = re.compile(r"((datasets|models)/)?[\w.*?-]+(/[\w.*?-]+)?")
"""A pattern of repository ids."""


def _on_or_off(value: Any) -> Any:
    """YAML reads `on` and `off` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class ServerParams(Params):
    """How the HTTP server behaves. An addition to the reference's parameters."""

    shutdown_timeout: Annotated[float, About(DEPLOY)] = Field(30, ge=0)
    """Seconds that running requests have to finish, once the server was told to stop: by SIGTERM, however often it is
    sent, or by Ctrl-C (SIGINT). A second Ctrl-C, a second or more after the first signal, ends it at once."""
    api_key_file: Annotated[str | None, About(DEPLOY)] = None
    """A file of more keys, one on a line, in the same form; what follows a # is a comment. It is read again on
    SIGHUP."""
    allow_anonymous: Annotated[bool, About(DEPLOY + PAGE)] = False
    """Let everybody in who reaches the address, without any key, also where other machines reach it."""
    key_max_running_requests: Annotated[int | None, About(DEPLOY)] = Field(None, ge=1)
    """Requests that may run at a time with one key; further ones are refused with status 429. Keys of one name count
    as one, and a line of `api_key_file` may set another limit after its key: `max_running_requests=4`. No limit unless
    given."""
    key_requests_per_minute: Annotated[int | None, About(DEPLOY)] = Field(None, ge=1)
    """Requests for answers and embeddings that one key may make in a minute, or `requests_per_minute` of its line; the
    headers `x-ratelimit-*` tell what is left. Those of batches do not count."""
    key_tokens_per_minute: Annotated[int | None, About(DEPLOY)] = Field(None, ge=1)
    """Tokens of prompts and outputs that one key may use in a minute, or `tokens_per_minute` of its line. A request has
    to find its prompt's there; what it generates is taken from the minutes to come where need be."""
    key_max_outputs: Annotated[int | None, About(DEPLOY)] = Field(None, ge=1)
    """Outputs that one request may ask for, `n` or `num_beams` for each of its prompts; or `max_outputs` in the key's
    line. A request for more is refused with status 400."""
    metrics_auth: Annotated[bool, About(DEPLOY)] = False
    """Require a key on `/metrics` too, on a server with keys."""
    sse_keep_alive_interval: Annotated[float, About(DEPLOY)] = Field(15, gt=0)
    """Seconds of silence in a stream after which a comment is sent, so that nothing between closes the connection."""
    max_connections: Annotated[int | None, About(DEPLOY)] = Field(None, ge=1)
    """Connections that may be open at a time. For one more, the one that has been idle longest is closed; where none
    is idle, it gets status 503 for all but `/health`, `/ping`, `/ready` and `/metrics`. Unless given, as many as the
    limit of open files (`ulimit -n`) has room for, 4096 at most."""
    ssl_certfile: Annotated[str | None, About(DEPLOY + PAGE)] = None
    """A file in PEM with the certificate and its chain: the server then speaks HTTPS only. It is read again on
    SIGHUP."""
    ssl_keyfile: Annotated[str | None, About(DEPLOY + PAGE)] = None
    """The file with the key of `ssl_certfile`; in that file too unless given."""
    ssl_keyfile_password: Annotated[str | None, About(DEPLOY + PAGE, secret=True)] = None
    """Password of the key, where it is encrypted."""
    max_body_size: Annotated[float, About(DEPLOY)] = Field(4, gt=0)
    """MiB of the largest request body, uploaded files aside; larger ones are refused with status 413. A line of a batch
    has the same limit."""
    root_path: Annotated[str, About(DEPLOY)] = Field("", pattern=r"^(/[\w.~-]+)*$")
    """Path under which a proxy shows the server, such as `/llm`: `/docs` finds it there, and requests are answered
    whether the proxy takes it off or not."""
    unknown_fields: Annotated[Literal["ignore", "refuse"], About(DEPLOY)] = "ignore"
    """What becomes of a request with a field that the server does not know: `ignore` answers it, and names the field in
    the header `x-ignored-fields`; `refuse` answers with status 400. Fields of messages and tools are ignored with
    either, parameters of trainings refused."""
    max_file_size: Annotated[float, About(DEPLOY + PAGE)] = Field(512, gt=0)
    """MiB of the largest file that can be uploaded at once."""
    max_upload_size: Annotated[float, About(DEPLOY)] = Field(8192, gt=0)
    """MiB of the largest file that can be uploaded in parts."""
    max_files: Annotated[int, About(DEPLOY)] = Field(10_000, ge=0)
    """Files that each name of keys may have, with those that batches and jobs have made for it; one more upload is
    refused with status 429. Without keys: all files together."""
    max_files_size: Annotated[float, About(DEPLOY)] = Field(100, ge=0)
    """GiB that these files may have together."""
    keep_completions: Annotated[bool, About(DEPLOY)] = False
    """Keep the chat completions that are asked for with `store: true`, to be looked at, and made training data of, at
    `/v1/chat/completions`. Unless given, `store` has no effect."""
    kept_days: Annotated[float, About(DEPLOY)] = Field(30, gt=0)
    """Days for which responses are kept, chat completions with `store`, and conversations after their last item."""
    max_kept: Annotated[int, About(DEPLOY)] = Field(10_000, ge=0)
    """How many of each of the three are kept for each name of keys. One more answer takes the place of the oldest; one
    more conversation is refused with status 429. Without keys: all together."""
    max_kept_size: Annotated[float, About(DEPLOY)] = Field(1, ge=0)
    """GiB that each of the three may have for each name of keys."""
    max_queued_batches: Annotated[int, About(DEPLOY)] = Field(100, ge=0)
    """Batches of each name of keys that may run or wait at a time; one more is refused with status 429."""
    disk_reserve: Annotated[float, About(DEPLOY)] = Field(256, ge=0)
    """MiB of the disk of `state_dir` that are kept for the database. Before they are taken, uploads and new batches and
    jobs are refused with status 507, batches wait, and running jobs fail with `insufficient_storage`."""
    allowed_origins: Annotated[Origins, About(DEPLOY + PAGE)] = ()
    """Web origins whose pages may call the server from a browser (CORS), such as `https://chat.example`; `*` for all.
    Those of others are refused."""
    allowed_hosts: Annotated[Hosts, About(DEPLOY + PAGE)] = ()
    """Names by which clients may call the server, besides IP addresses, localhost, `host` and the machine's own name;
    `*` for all. Unless given, a server with keys answers to every name, and one without keys to those only."""
    batch_concurrency: Annotated[int, About(DEPLOY)] = Field(16, ge=1)
    """Requests of batches that run at once, and never more than half of what the engine runs. With more a batch is done
    sooner, and the answers to other requests come slower."""
    adapter_roots: Annotated[Strings, About(DEPLOY)] = ()
    """Folders under which an adapter must lie that is loaded through the API. Unless given, the API loads none."""
    adapter_dir: Annotated[str | None, About(DEPLOY)] = None
    """A folder whose subfolders are adapters: one that a request names is loaded then."""
    state_dir: Annotated[str | None, About(DEPLOY)] = None
    """Where the server keeps what it must know after a restart: adapters, files, jobs. Only its own user can read
    it. Unless given, the platform's folder for user data. It serves one server at a time: a second one ends at its
    start."""
    without_state: Annotated[bool, About(DEPLOY)] = False
    """Serve the model alone: no files, batches and jobs, which are answered with 409, and no adapter that is loaded
    over the API is there after a restart. `state_dir` is left alone."""
    database_url: Annotated[str | None, About(DEPLOY, secret=True)] = None
    """The database of files, jobs and batches: `postgresql://user:password@host/name`, or `sqlite:///FILE`. Unless
    given, a SQLite file in `state_dir`. It serves one server at a time, too."""
    max_running_jobs: Annotated[int, About(DEPLOY)] = Field(1, ge=0)
    """Training jobs that run at a time; 0: they stay in the queue."""
    max_queued_jobs: Annotated[int, About(DEPLOY)] = Field(100, ge=0)
    """Jobs of each name of keys that may wait at a time, with those whose data is being checked; one more is refused
    with status 429."""
    job_validation_timeout: Annotated[float, About(DEPLOY)] = Field(3600, gt=0)
    """Seconds to fetch what a job names on the hub and to check its data. A job that takes longer fails."""
    job_retries: Annotated[int, About(DEPLOY)] = Field(2, ge=0)
    """How often a job whose worker process died without saying why goes on from its last checkpoint by itself."""
    job_gpu_memory: Annotated[float, About(DEPLOY)] = Field(4, ge=0)
    """GiB that must be free on a GPU before a job gets it."""
    job_memory: Annotated[float | None, About(DEPLOY)] = Field(None, gt=0)
    """GiB of the machine's memory that each process of a job may take for itself; one that asks for more fails and says
    so. No limit unless given: where memory runs out, the system ends a job's processes before the server's."""
    job_roots: Annotated[Strings, About(DEPLOY)] = ()
    """Folders under which the models, adapters and data must lie that a job of the API names by a path. Unless given,
    such a job names uploaded files and other jobs."""
    job_hub: Annotated[Strings, BeforeValidator(_on_or_off), About(DEPLOY)] = ("off",)
    """Which repositories of the Hugging Face hub jobs of the API may read, always without a token: `off`, `on` for all
    that are public, or patterns such as `HuggingFaceTB/*`, with `datasets/` or `models/` before them for one kind."""
    job_hub_max_size: Annotated[float, About(DEPLOY)] = Field(20, gt=0)
    """GiB that a job may fetch from the hub, and that the server keeps of it for other jobs."""

    python_graders: Annotated[bool, About(DEPLOY)] = False
    """Run the Python code of graders, which clients send that may train, in a process that can only compute: without
    files, network or other processes. On Linux only."""

    @field_validator("job_hub")
    @classmethod
    def _names_repositories(cls, job_hub: tuple[str, ...]) -> tuple[str, ...]:
        if not job_hub or (len(job_hub) > 1 and not {"on", "off"}.isdisjoint(job_hub)):
            raise ValueError("give off, on, or patterns of repository ids")
        if wrong := [each for each in job_hub if not REPOSITORIES.fullmatch(each)]:
            raise ValueError(f"{wrong[0]!r} is no pattern of repository ids: they look like HuggingFaceTB/*")
        return job_hub


class DeployParams(ChatTemplateParams, ParserParams, ServerParams, InferParams):
    """Serving a model over HTTP."""

    starred: ClassVar = frozenset({"served_model_name"})

    host: Annotated[str, About(DEPLOY)] = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all addresses of the machine. One that other machines reach needs a key, or
    `allow_anonymous`. The reference listens on all addresses, without a key as well."""
    port: Annotated[int, About(DEPLOY)] = Field(8000, ge=0, le=65535)
    """Port to listen on; 0: a free one. A port that is taken is an error."""
    api_key: Annotated[Annotated[Strings, Field(min_length=1)] | None, About(DEPLOY + PAGE, secret=True)] = None
    """Keys of which a request must bring one, each as `[NAME=][ROLE[+ROLE...]:]KEY`. The roles: `infer` may ask for
    answers, `train` run jobs, `admin` administer, `metrics` read `/metrics`; a key without any may do everything. The
    name, which is no secret, stands in logs and metrics, and what several keys of one name make belongs to one owner. A
    key has 16 characters or more. Keys of the environment variable TUNESERVE_API_KEY, separated by spaces or commas,
    are added."""
    owned_by: Annotated[str, About(DEPLOY)] = "tuneserve"
    """Owner of the served models, as `/v1/models` says. The reference names itself there, and so does this one."""
    served_model_name: Annotated[str | None, About(DEPLOY)] = None
    """Name that requests ask for. The last part of `model`, without `.gguf`, unless given; of a file `model.gguf` the
    name of its folder."""
    verbose: Annotated[bool, About(DEPLOY + PAGE)] = True
    """Log every request but those for `/health`, `/ping`, `/ready` and `/metrics`."""
    log_interval: Annotated[int, About(DEPLOY)] = Field(20, ge=-1)
    """Seconds between log lines about throughput; -1: none."""
    max_logprobs: Annotated[int, About(DEPLOY, engines=EVERY_ENGINE)] = Field(20, ge=-1)
    """The most logprobs of a token that a request may ask for; -1: of the whole vocabulary, for which a request asks by
    -1, too."""
