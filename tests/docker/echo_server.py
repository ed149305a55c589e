"""A server process without a model, on the port given: python echo_server.py PORT."""

import sys

import uvicorn

from engines.echo import EchoEngine, echo_tokenizer
from engines.params.deploy import DeployParams
from server.app import create_app
from server.deps import make_serving

if __name__ == "__main__":
    serving = make_serving(EchoEngine(), echo_tokenizer(), DeployParams(model="tests/echo"))
    uvicorn.run(create_app(serving), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
