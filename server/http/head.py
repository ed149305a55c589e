"""HEAD on whatever answers GET: its status and its headers, without the body (RFC 9110, 9.3.2).

FastAPI's routes answer it with 405, and load balancers and monitors ask by it whether a path is there.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _Answered(Exception):
    """Nobody reads the body that is being written."""


class Head:
    """What is inside sees a GET, and keys and roles are those of GET.

    The answer is over with its headers: whatever waits finds that the client has gone, and whatever goes on writing is
    ended, be it a stream or a large file.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})
            elif message.get("more_body"):
                raise _Answered

        try:
            await self._app({**scope, "method": "GET"}, receive, send_head)
        except* _Answered:  # also out of a group of tasks
            pass
