"""llama.cpp's own server, by xllamacpp: `python -m benchmarks.llamacpp_serve MODEL DTYPE THREADS PORT TOKENS`.

The model goes into a GGUF file of the same weights first, once, under .bench/.
"""

import hashlib
import signal
import sys
from pathlib import Path

from benchmarks.environments import HOME
from benchmarks.servers import MOST_AT_ONCE
from engines.setup.install import install_llamacpp

LEAST_TOKENS, SPARE_TOKENS = 512, 64
"""Room for a request: at least, and beside what it is meant to have."""
TYPES = {"bfloat16": "bf16", "float32": "f32"}


def gguf_of(model: Path, dtype: str) -> Path:
    """The file, written where it is not there yet."""
    from engines.checkpoint.loading import load_config, load_model, load_tokenizer
    from training.exports.gguf.model import write_model

    content = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()[:8]
    target = HOME / f"{model.name}-{content}-{TYPES[dtype]}.gguf"
    if not target.exists():
        import torch

        loaded = load_model(str(model), config=load_config(str(model)), dtype=getattr(torch, dtype), device_map="cpu")
        partial = target.with_suffix(".partial")
        write_model(loaded, load_tokenizer(str(model)), model, partial, TYPES[dtype], name=model.name)
        partial.rename(target)
    return target


def serve(file: Path, threads: int, port: int, tokens: int) -> None:
    """`tokens`: of a prompt and its answer."""
    sys.path.append(str(install_llamacpp().parent))
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_parallel, params.n_ctx = MOST_AT_ONCE, MOST_AT_ONCE * max(LEAST_TOKENS, tokens + SPARE_TOKENS)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{file} at {server.listening_address}\n")
    signal.pause()


if __name__ == "__main__":
    model, dtype, threads, port, tokens = sys.argv[1:]
    serve(gguf_of(Path(model), dtype), int(threads), int(port), int(tokens))
