"""One request, whatever its fields hold, neither holds up others for long nor takes much memory.

`python -m benchmarks.edge` measures the same. The bounds on times are wide here: other work may share the machine.
"""

from collections.abc import Iterator

import pytest

from benchmarks.edge_cases import cases, hostile_grammar, prompt_to_count
from benchmarks.edge_probe import beside_grammars, cost_of
from tests.server.process import ServerProcess
from tests.until import until

SECONDS = 2.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """On an engine in a process of its own, whose work is not the server's."""
    params = {"verbose": False, "state_dir": str(tmp_path_factory.mktemp("edge")), "max_running_jobs": 0}
    server = ServerProcess.echo(params=params, hosted=True)
    try:
        server.wait_until_listening()
        until(server.is_ready)
        yield server
    finally:
        server.close()


def test_no_body_with_a_field_at_its_limit_costs_others_much(server: ServerProcess) -> None:
    costs = [cost_of(case, server.url, server.pid) for case in cases("echo")]
    answered = {cost.name for cost in costs if cost.status == 200}
    assert len(costs) > 60 and len(answered) > 20
    assert {cost.status for cost in costs} <= {200, 400, 413}
    assert [cost for cost in costs if cost.worst_health_seconds > SECONDS] == []
    assert [cost for cost in costs if cost.memory_mib > cost.memory_allowed_mib] == []


def test_hostile_grammars_stop_no_tokenizing(server: ServerProcess) -> None:
    grammars = [hostile_grammar("echo", number) for number in range(8)]
    beside = beside_grammars(grammars, [prompt_to_count("echo", number) for number in range(10)], server.url)
    assert len(beside.statuses) < len(grammars) and set(beside.statuses) <= {400, 429}
    assert beside.worst_seconds < SECONDS
