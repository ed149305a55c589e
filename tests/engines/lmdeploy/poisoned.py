"""The engine's process on a CPU, whose forward pass fails where a prompt holds the token POISON."""

from typing import Any

from tests.engines.lmdeploy import cpu_shim

POISON = 299


def poison_forward() -> None:
    from lmdeploy.pytorch.engine.model_agent.agent import BaseModelAgent

    forward = BaseModelAgent.async_forward

    async def forward_unless_poisoned(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not inputs.is_decoding and (inputs.input_ids == POISON).any():
            raise RuntimeError("CUDA error: device-side assert triggered")
        return await forward(self, inputs, *args, **kwargs)

    BaseModelAgent.async_forward = forward_unless_poisoned


if __name__ == "__main__":
    cpu_shim.install()
    poison_forward()

    from engines.lmdeploy.process import main

    main()
