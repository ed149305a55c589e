"""Environments of the peers: one folder each under .bench/, made on first use, kept for the next."""

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".bench"


class NotRun(Exception):
    """A peer cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with pinned packages, beside the build of torch that our own environment has."""

    name: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return HOME / self.name

    def program(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def prepare(self, torch_index: str | None) -> None:
        """Make it, where it is not there yet. Raises NotRun."""
        ready = self.folder / ".ready"
        if ready.exists() and ready.read_text() == self._stamp():
            return
        _run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        torch = f"torch=={version('torch')}"
        if torch_index is not None:  # that index gives torch alone
            self.install("--no-deps", "--index-url", torch_index, torch)
        self.install(torch, *self.packages)
        self.finish()
        ready.write_text(self._stamp())

    def install(self, *packages: str) -> None:
        _run([self.program("python"), "-m", "pip", "install", "--quiet", *packages])

    def finish(self) -> None:
        """What is left to do after the installation."""

    def _stamp(self) -> str:
        return "\n".join([f"torch=={version('torch')}", *self.packages])


@dataclass(frozen=True, slots=True)
class Vllm(Environment):
    """vLLM as tuneserve installs it, for CPUs or for CUDA."""

    def finish(self) -> None:
        _run([self.program("python"), "-m", "engines.setup.locked", "server"])
        _run([self.program("python"), "-m", "engines.setup.install", "vllm"])


@dataclass(frozen=True, slots=True)
class VllmZentorch(Vllm):
    """The same beside AMD's library for its products, in the version for our torch."""

    def prepare(self, torch_index: str | None) -> None:
        """vLLM asks for it nowhere else. Raises NotRun."""
        cpu = Path("/proc/cpuinfo")
        if not cpu.exists() or not {"AuthenticAMD", "avx512f"} <= set(cpu.read_text().split()):
            raise NotRun("vLLM takes zentorch on AMD's CPUs with AVX-512 alone")
        Vllm.prepare(self, torch_index)


@dataclass(frozen=True, slots=True)
class LlamaCpp(Environment):
    """llama.cpp as tuneserve installs it, in a folder of its own beside our environment."""

    def prepare(self, torch_index: str | None) -> None:
        _run([sys.executable, "-m", "engines.setup.install", "llamacpp"])


@dataclass(frozen=True, slots=True)
class LlamaFactory(Environment):
    """LLaMA-Factory without its web page, and without torch's companions, which PyPI has only for CUDA: it imports
    torchaudio whatever it trains, and gets an empty module of that name."""

    def finish(self) -> None:
        self.install("--no-deps", "llamafactory==0.9.5")
        script = "import sysconfig; print(sysconfig.get_path('purelib'))"
        done = subprocess.run([self.program("python"), "-c", script], capture_output=True, text=True, check=True)
        (Path(done.stdout.strip()) / "torchaudio.py").touch()


LLAMA_FACTORY_REQUIREMENTS = (
    "transformers==5.6.0", "trl==0.24.0", "peft==0.18.1", "accelerate==1.11.0", "datasets==4.0.0", "tyro<0.9",
    "torchdata>=0.10,<=0.11", "av<=16", "einops", "fastapi", "fire", "hf-transfer", "matplotlib", "modelscope",
    "omegaconf", "pandas", "protobuf", "pydantic", "pyyaml", "scipy", "sentencepiece", "sse-starlette", "tensorboard",
    "tiktoken", "uvicorn", "bitsandbytes==0.50.2",
)  # fmt: skip


def _run(command: list[str]) -> None:
    """Run to the end, or raise NotRun with the last thing it said."""
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing"]
        raise NotRun(f"its environment could not be made: {' '.join(command[1:5])} said: {said[0]}")
