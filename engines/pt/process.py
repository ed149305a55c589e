"""The engine's own process: `python -m engines.pt.process FD`. Reads requests from a socket, steps, writes outputs.

One thread reads, steps and writes in turn: between two steps it takes in everything that has arrived. Constraints are
compiled in a second thread, so that a large schema does not hold up the requests that run.
"""

import logging
import select
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import msgspec

from engines.capabilities import Capabilities
from engines.errors import EngineFailure, TuneserveError, UnsupportedModel
from engines.logs import about, configure_logging
from engines.process import frames
from engines.process.children import set_parent_death_signal
from engines.process.connection import Connection
from engines.process.host import host
from engines.process.imports import uncollected
from engines.pt.config import PtConfig
from engines.types import GenerationRequest, PoolingRequest, StructuredKind

if __name__ == "__main__":
    set_parent_death_signal()  # before what takes seconds to import: there is nothing to end in order

with uncollected():
    from transformers.utils.logging import disable_progress_bar

    from engines.checkpoint.loading import load_eos_token_ids, load_tokenizer
    from engines.pt.core import EngineCore
    from engines.pt.lora.store import Arrival
    from engines.pt.outputs.requests import StepReport
    from engines.pt.runner import ModelRunner
    from engines.sampler.grammar import GrammarCompiler, GrammarState
    from engines.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

FAILED_STEPS = 3
"""Number of steps in a row that fail before the process ends: a fresh one is the better bet."""


class PtProcess:
    """Our own engine, as its process hosts it."""

    def __init__(self, config: PtConfig) -> None:
        self._config = config

    def start(self) -> Capabilities:
        self._core, self._grammars, capabilities = load(self._config)
        return capabilities

    def serve(self, connection: Connection) -> None:
        StepLoop(connection, self._core, self._grammars).run()

    def stop(self) -> None:
        """What it holds, it holds in its process."""


class StepLoop:
    """The core, the connection, and the constraints that are being compiled."""

    def __init__(self, connection: Connection, core: EngineCore, grammars: GrammarCompiler | None) -> None:
        self._connection = connection
        self._core = core
        self._grammars = grammars
        self._compiler = ThreadPoolExecutor(1, "grammar")
        self._compiling: dict[str, tuple[GenerationRequest, Future[GrammarState]]] = {}
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        core.adapters.wake = self._wake_up
        self._failed_steps = 0
        self._received = 0

    def run(self) -> None:
        """Step until the server goes. Raises Closed then, EngineFailure where steps keep failing."""
        while True:
            if not self._core.busy or self._core.stalled:
                select.select([self._connection.socket, self._woken], [], [])
            report, asked = StepReport(), False
            for message in self._connection.receive():
                self._received += isinstance(message, (frames.Generate, frames.Pool))
                asked |= isinstance(message, frames.Ping)
                self._handle(message, report)
            self._add_compiled(report)
            self._step(report)
            anything = report.outputs or report.pooled or report.errors or report.adapters
            if anything or asked or not self._core.busy:
                self._tell(report)

    def _handle(self, message: frames.ToEngine, report: StepReport) -> None:
        match message:
            case frames.Generate(request) if request.sampling.structured is not None:
                self._compile(request)
            case frames.Generate(request) | frames.Pool(request):
                self._add(request, None, report)
            case frames.Finish(request_id, index):
                self._core.requests.finish(request_id, index)
            case frames.Abort(request_id):
                self._compiling.pop(request_id, None)
                self._core.requests.abort(request_id)
            case frames.LoadAdapter(version, folder, pinned):
                self._load_adapter(version, Path(folder), pinned, report)
            case frames.UnloadAdapter(version):
                self._core.unload_adapter(version, report)

    def _compile(self, request: GenerationRequest) -> None:
        structured = request.sampling.structured
        assert structured is not None and self._grammars is not None, "capabilities tell what can be asked for"
        future = self._compiler.submit(self._grammars.compile, structured)
        future.add_done_callback(lambda _: self._wake_up())
        self._compiling[request.request_id] = (request, future)

    def _wake_up(self) -> None:
        """Called by another thread when something has come that `run` may be waiting for."""
        with suppress(BlockingIOError):  # it has been woken so often already that one more changes nothing
            self._wake.send(b".")

    def _add_compiled(self, report: StepReport) -> None:
        """Queue the requests whose constraints have been compiled."""
        if not select.select([self._woken], [], [], 0)[0]:
            return
        self._woken.recv(4096)
        for request_id, (request, future) in list(self._compiling.items()):
            if not future.done():
                continue
            del self._compiling[request_id]
            self._add(request, future, report)

    def _add(
        self, request: GenerationRequest | PoolingRequest, grammar: Future[GrammarState] | None, report: StepReport
    ) -> None:
        """Queue a request. Whatever is wrong with it or its constraint concerns nobody else."""
        try:
            self._core.add(request, None if grammar is None else grammar.result())
        except TuneserveError as error:
            report.errors.append((request.request_id, error))
        except Exception:
            with about(request.http_request_id):
                log.exception("a request could not be taken in")
            failure = EngineFailure("the engine failed while it took this request in")
            report.errors.append((request.request_id, failure))

    def _load_adapter(self, version: str, folder: Path, pinned: bool, report: StepReport) -> None:
        try:
            self._core.adapters.load(version, folder, pinned=pinned)
        except TuneserveError as error:
            report.adapters.append(Arrival(version, error))

    def _step(self, report: StepReport) -> None:
        try:
            done = self._core.step()
            if done.outputs or done.pooled:
                self._failed_steps = 0
        except Exception as error:
            log.exception("a step failed, for the requests %s", ", ".join(self._core.running_http_request_ids()))
            self._failed_steps += 1
            if self._failed_steps == FAILED_STEPS or "CUDA" in str(error):
                raise EngineFailure(f"steps keep failing: {error}") from error
            done = self._core.fail_running(EngineFailure("the engine failed while it computed this request"))
        report.outputs.extend(done.outputs)
        report.pooled.extend(done.pooled)
        report.errors.extend(done.errors)
        report.adapters.extend(done.adapters)

    def _tell(self, report: StepReport) -> None:
        failures = [(request_id, frames.take_apart(error)) for request_id, error in report.errors]
        stats = self._core.stats()
        if self._compiling:
            constrained = len(self._compiling)
            waiting_for = {**stats.waiting_for, "constraint": constrained}
            stats = replace(stats, waiting=stats.waiting + constrained, waiting_for=waiting_for)
        adapters = [(a.version, None if a.error is None else frames.take_apart(a.error)) for a in report.adapters]
        self._connection.send(frames.Step(stats, self._received, report.outputs, report.pooled, failures, adapters))


def load(config: PtConfig) -> tuple[EngineCore, GrammarCompiler | None, Capabilities]:
    """Load the model and say what it can do. Raises UnsupportedModel."""
    source = {"revision": config.revision, "token": config.token}
    eos_token_ids = load_eos_token_ids(config.model, **source)
    runner = ModelRunner(config)
    tokenizer = load_tokenizer(config.model, **source)
    grammars = None if runner.head is not None else _grammars(tokenizer, runner, eos_token_ids)
    core = EngineCore(runner, config, eos_token_ids, grammars, Vocabulary(tokenizer).token_bytes)
    kinds: frozenset[StructuredKind] = frozenset(get_args(StructuredKind))
    capabilities = Capabilities(
        max_model_len=runner.max_model_len,
        vocab_size=runner.vocab_size,
        max_logprobs=config.max_logprobs,
        eos_token_ids=eos_token_ids,
        structured=kinds if grammars else frozenset(),
        embeddings=True,
        head=runner.head,
        max_beams=config.max_num_seqs,
        cache_config=_cache_config(runner, config),
        adapters=runner.lora.support if config.max_loras else None,
        predictions=runner.head is None,
    )
    return core, grammars, capabilities


def _grammars(tokenizer: Any, runner: ModelRunner, eos_token_ids: tuple[int, ...]) -> GrammarCompiler | None:
    try:
        return GrammarCompiler(tokenizer, runner.vocab_size, eos_token_ids)
    except UnsupportedModel as error:
        log.warning("%s", error.message)
        return None


def _cache_config(runner: ModelRunner, config: PtConfig) -> dict[str, str]:
    cache = runner.cache
    return {
        "block_size": str(cache.block_size),
        "num_gpu_blocks": str(cache.num_blocks),  # wherever they lie: vLLM has no other name for them
        "kv_cache_size_tokens": str(cache.num_blocks * cache.block_size),
        "cache_dtype": cache.dtype,
        "enable_prefix_caching": str(config.enable_prefix_caching),
        "gpu_memory_utilization": str(config.gpu_memory_utilization),
    }


def make(fields: dict[str, Any]) -> PtProcess:
    return PtProcess(msgspec.convert(fields, PtConfig))


def main() -> None:
    disable_progress_bar()
    configure_logging()
    host(make)


if __name__ == "__main__":
    main()
