"""Our engine without HTTP: what remains of its speed is what the server costs.

`python -m benchmarks.engine_alone MODEL DTYPE THREADS` drives a PtEngine as the server does: the engine in its process,
requests and tokens over its socket, but no JSON, no text, no HTTP.
"""

import asyncio
import sys
import time

from benchmarks.driver import Answer, run_concurrently, serve_loads
from benchmarks.workload import Load, render
from engines.checkpoint.loading import load_tokenizer
from engines.pt.client import PtEngine
from engines.pt.config import PtConfig
from engines.types import GenerationRequest, Sampling


class Alone:
    def __init__(self, engine: PtEngine, model: str) -> None:
        self._engine = engine
        self._tokenizer = load_tokenizer(model)
        self._asked = 0

    async def ask(self, load: Load, position: int) -> Answer:
        answer = Answer(started=time.perf_counter())
        self._asked += 1
        request = GenerationRequest(
            request_id=f"bench-{self._asked}",
            prompt_ids=render(self._tokenizer, load.messages[position]),
            sampling=Sampling(
                max_new_tokens=load.output_tokens,
                ignore_eos=True,
                temperature=load.sampling["temperature"],
                top_p=load.sampling.get("top_p", 1.0),
            ),
        )
        answer.prompt_tokens = len(request.prompt_ids)
        async for output in self._engine.generate(request):
            answer.output_tokens += len(output.token_ids)
            answer.arrivals.append(time.perf_counter())
        answer.ended = time.perf_counter()
        return answer


def main(model: str, dtype: str, threads: str) -> None:
    config = PtConfig(model=model, dtype=dtype, threads=int(threads))  # type: ignore[arg-type]
    engine = PtEngine(config, max_num_queued_reqs=1024)
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        alone = Alone(engine, model)
        serve_loads(lambda load: runner.run(run_concurrently(load, alone.ask)), sys.stdout)
        runner.run(engine.stop())


if __name__ == "__main__":
    main(*sys.argv[1:])
