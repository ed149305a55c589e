"""The engine's process on a CPU, where it takes adapters by building anew: its check of the slots finds fault."""

from tests.engines.lmdeploy import cpu_shim

if __name__ == "__main__":
    cpu_shim.install()

    from engines.lmdeploy.hot_slots import HotSlots
    from engines.lmdeploy.process import main

    async def check(self: HotSlots) -> str:
        return "so the test wants it"

    HotSlots.check = check  # type: ignore[method-assign]
    main()
