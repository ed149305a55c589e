"""The LMDeploy engine's process, on a CPU: `python -m tests.engines.lmdeploy.on_cpu FD`."""

from tests.engines.lmdeploy import cpu_shim

if __name__ == "__main__":
    cpu_shim.install()

    from engines.lmdeploy.process import main

    main()
