"""What an exchange makes of the server's messages, whatever moment they come in."""

import asyncio
import socket
from pathlib import Path

import pytest

from engines.echo import EchoEngine
from engines.process import frames
from engines.process.asyncio_engine import Exchange
from engines.process.connection import Closed, Connection
from engines.types import GenerationRequest, PoolingRequest, Sampling


class SlowAdapters(EchoEngine):
    """Each change of an adapter takes until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[str] = []
        self.gates: list[asyncio.Event] = []

    async def load_adapter(self, version: str, folder: Path, *, pinned: bool = False) -> None:
        await self._take_time(f"load {version}")
        self._adapters.load(version, folder, pinned)

    async def unload_adapter(self, version: str) -> None:
        await self._take_time(f"unload {version}")

    async def _take_time(self, change: str) -> None:
        self.begun.append(change)
        self.gates.append(asyncio.Event())
        await self.gates[-1].wait()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def hosted(engine: SlowAdapters) -> Exchange:
    await engine.start()
    ours, _ = socket.socketpair()  # nothing is told here
    return Exchange(engine, Connection(ours))


LOAD, UNLOAD = frames.LoadAdapter("a@1", "nowhere", False), frames.UnloadAdapter("a@1")


async def test_changes_of_one_adapter_happen_in_their_order_whenever_they_are_told() -> None:
    engine = SlowAdapters()
    host = await hosted(engine)
    host._handle(LOAD)
    host._handle(UNLOAD)
    await settled()
    assert engine.begun == ["load a@1"]
    engine.gates[0].set()
    host._handle(LOAD)  # as the first one ends, and before the second has
    await settled()
    assert engine.begun == ["load a@1", "unload a@1"]
    host._handle(LOAD)
    await settled()
    assert engine.begun == ["load a@1", "unload a@1"]
    engine.gates[1].set()
    await settled()
    engine.gates[2].set()
    await settled()
    assert engine.begun == ["load a@1", "unload a@1", "load a@1", "load a@1"]
    engine.gates[3].set()
    await settled()
    assert not host._last_changes


async def test_adapters_do_not_wait_for_each_other() -> None:
    engine = SlowAdapters()
    host = await hosted(engine)
    host._handle(LOAD)
    host._handle(frames.LoadAdapter("b@1", "nowhere", False))
    await settled()
    assert engine.begun == ["load a@1", "load b@1"]


async def test_a_request_waits_for_the_adapter_that_was_named_before_it_and_for_no_later_change(tmp_path: Path) -> None:
    engine = SlowAdapters()
    host = await hosted(engine)
    (tmp_path / "adapter_model.safetensors").touch()
    host._handle(frames.LoadAdapter("a@1", str(tmp_path), False))
    sampling = Sampling(max_new_tokens=1)
    host._handle(frames.Generate(GenerationRequest(request_id="r", prompt_ids=[65], sampling=sampling, adapter="a@1")))
    await settled()
    assert not host._step.outputs and not host._step.failures
    engine.gates[0].set()
    host._handle(frames.LoadAdapter("a@1", str(tmp_path), True))
    while not host._step.outputs:
        assert not host._step.failures
        await asyncio.sleep(0.001)
    assert engine.begun == ["load a@1"] * 2 and not engine.gates[1].is_set()


class Pools(EchoEngine):
    """Numbers are there once they are let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def pool(self, request: PoolingRequest) -> list[float]:
        await self.gate.wait()
        return await super().pool(request)


async def test_numbers_are_told_though_other_things_have_been_told_since_they_were_asked_for() -> None:
    engine = Pools()
    await engine.start()
    server, ours = socket.socketpair()
    server.setblocking(False)
    running = asyncio.create_task(Exchange(engine, Connection(ours)).run())
    loop = asyncio.get_running_loop()
    asked = frames.Pool(PoolingRequest(request_id="e", prompt_ids=[65]))
    await loop.sock_sendall(server, frames.frame(asked) + frames.frame(frames.Ping()))
    splitter = frames.Splitter(frames.decode_from_engine)
    told: list[frames.FromEngine] = []
    while not any(isinstance(one, frames.Step) and one.pooled for one in told):
        assert len(told) < 100, "each of them an answer to a ping"
        told += splitter.feed(await loop.sock_recv(server, 1 << 16))
        engine.gate.set()
        await loop.sock_sendall(server, frames.frame(frames.Ping()))
    server.close()
    with pytest.raises(Closed):
        await running


async def test_a_ping_is_answered_whatever_the_engine_is_at() -> None:
    engine = SlowAdapters()
    await engine.start()
    server, ours = socket.socketpair()
    server.setblocking(False)
    running = asyncio.create_task(Exchange(engine, Connection(ours)).run())
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(server, frames.frame(LOAD) + frames.frame(frames.Ping()))
    splitter = frames.Splitter(frames.decode_from_engine)
    answers: list[frames.FromEngine] = []
    while not answers:
        answers += splitter.feed(await loop.sock_recv(server, 1 << 16))
    assert isinstance(answers[0], frames.Step) and not answers[0].adapters
    assert engine.begun == ["load a@1"]
    server.close()
    with pytest.raises(Closed):
        await running
