"""The container's files: what can be said of them without building an image."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = _tool("hadolint", str(ROOT / "Dockerfile"))

    assert done.returncode == 0, done.stdout


def test_the_compose_file_follows_the_compose_specification() -> None:
    done = _tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE))

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


def test_the_image_runs_as_a_user_without_rights() -> None:
    assert [line for line in _dockerfile() if line.startswith("USER ")] == ["USER 10001"]


def test_prometheus_scrapes_the_server_by_its_name_and_port_in_the_compose_file() -> None:
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    scrape = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text())["scrape_configs"][0]
    (mount,) = [volume for volume in services["prometheus"]["volumes"] if volume.startswith("./")]

    assert scrape["static_configs"] == [{"targets": ["api:8000"]}]
    assert services["api"]["ports"] == ["${PORT:-8000}:8000"]
    assert (COMPOSE.parent / mount.split(":")[0]).is_file()


def test_the_compose_file_resolves_where_docker_has_its_compose_plugin() -> None:
    compose = ("docker", "compose")
    if not shutil.which("docker") or _run(*compose, "version").returncode != 0:
        pytest.skip("docker compose is not installed")

    done = _run(*compose, "-f", str(COMPOSE), "config", "--quiet")

    assert done.returncode == 0, done.stderr


def _dockerfile() -> list[str]:
    return (ROOT / "Dockerfile").read_text().splitlines()


def _tool(name: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment that runs the tests."""
    return _run(str(Path(sys.executable).parent / name), *args)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
