"""The container's files: what can be said of them without building an image."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"
COMPOSE_GPU = ROOT / "docker" / "compose.gpu.yaml"
ENGINES = {"api": "pt", "vllm": "vllm", "lmdeploy": "lmdeploy"}
"""The targets that are run, and the engine of each."""


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = _tool("hadolint", str(ROOT / "Dockerfile"))

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [COMPOSE, COMPOSE_GPU], ids=lambda path: path.name)
def test_the_compose_files_follow_the_compose_specification(file: Path) -> None:
    done = _tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(file))

    assert done.returncode == 0, done.stdout


def test_everything_that_the_dockerfile_copies_reaches_the_build() -> None:
    """.dockerignore lets through what it names, and no more."""
    sources = [
        name
        for line in _dockerfile()
        if line.startswith("COPY ") and "--from=" not in line
        for name in line.split()[1:-1]
    ]
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert set(sources) == let_through
    assert all((ROOT / name).exists() for name in sources)


def test_without_a_target_our_own_engine_is_built() -> None:
    assert list(_stages())[-1] == "api"


@pytest.mark.parametrize(("target", "engine"), ENGINES.items())
def test_each_image_runs_its_engine_as_a_user_without_rights(target: str, engine: str) -> None:
    lines = [line for stage in ("server", target) for line in _stages()[stage]]
    engines = [found for line in lines if (found := re.search(r"\bENGINE=(\w+)", line))]

    assert _stages()[target][0] == f"FROM server AS {target}"
    assert lines[-1] == "USER 10001"
    assert engines[-1][1] == engine
    assert [line for line in lines if line.startswith("ENTRYPOINT") and '--infer_backend \\"$ENGINE\\"' in line]


def test_the_compose_file_builds_each_engine_and_starts_our_own() -> None:
    services = _services(COMPOSE)
    servers = {name: service for name, service in services.items() if name != "prometheus"}

    assert {name: service["build"]["target"] for name, service in servers.items()} == {name: name for name in ENGINES}
    assert [name for name, service in services.items() if "profiles" not in service] == ["api", "prometheus"]
    assert len({service["image"] for service in servers.values()}) == len(ENGINES)
    assert _services(COMPOSE_GPU) == {name: {"gpus": "all"} for name in ENGINES}


def test_prometheus_scrapes_each_server_by_the_name_and_port_that_all_have_in_the_compose_file() -> None:
    services = _services(COMPOSE)
    scrape = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text())["scrape_configs"][0]
    (mount,) = [volume for volume in services["prometheus"]["volumes"] if volume.startswith("./")]

    assert scrape["static_configs"] == [{"targets": ["server:8000"]}]
    for name in ENGINES:
        assert services[name]["ports"] == ["${PORT:-8000}:8000"]
        assert services[name]["networks"]["default"]["aliases"] == ["server"]
    assert (COMPOSE.parent / mount.split(":")[0]).is_file()


def test_the_compose_file_resolves_where_docker_has_its_compose_plugin() -> None:
    compose = ("docker", "compose")
    if not shutil.which("docker") or _run(*compose, "version").returncode != 0:
        pytest.skip("docker compose is not installed")

    done = _run(*compose, "-f", str(COMPOSE), "-f", str(COMPOSE_GPU), "--profile", "*", "config", "--quiet")

    assert done.returncode == 0, done.stderr


def _dockerfile() -> list[str]:
    return (ROOT / "Dockerfile").read_text().splitlines()


def _stages() -> dict[str, list[str]]:
    """The lines of each stage, by its name."""
    stages: dict[str, list[str]] = {}
    for line in _dockerfile():
        if line.startswith("FROM "):
            lines = stages[line.split()[-1]] = []
        if stages and line and not line.startswith("#"):
            lines.append(line)
    return stages


def _services(file: Path) -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(file.read_text())["services"]
    return services


def _tool(name: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment that runs the tests."""
    return _run(str(Path(sys.executable).parent / name), *args)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
