"""A whole page, put together and shown."""

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.keys.keys import Keys
from server.http.origins import Origins
from server.pages.api import Api
from server.pages.chat_page import chat, visitor
from server.pages.jobs_page import jobs
from server.pages.settings import VARIABLE, Settings
from server.pages.training_page import training
from server.pages.words import BY_LANGUAGE

logger = logging.getLogger("server.pages")

SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
MONOSPACE = ("ui-monospace", "monospace")
CONTENT_SECURITY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    b"object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""A page loads nothing from elsewhere, so that what a model writes can send nothing elsewhere, as the address of an
image would. Gradio's scripts are inline, and its plots compile expressions."""
HOURS = 3600


class ContentSecurity:
    """Adds the policy to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", CONTENT_SECURITY),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self._app(scope, receive, send_with_policy)


def make_page(settings: Settings, api: Api) -> gr.Blocks:
    """The page, not yet shown."""
    words = BY_LANGUAGE[settings.lang]
    uploads_last = (HOURS, 24 * HOURS)
    with gr.Blocks(title=settings.title, analytics_enabled=False, fill_height=True, delete_cache=uploads_last) as page:
        gr.Markdown(f"# {settings.title}")
        who = visitor(page, api, settings, words)
        if not settings.trains:
            chat(api, settings, words, who)
            return page
        with gr.Tabs() as tabs:
            with gr.Tab(words.train, id="train"):
                started = training(api, words, who)
            with gr.Tab(words.jobs, id="jobs"):
                jobs(api, words, who, started, tabs)
            with gr.Tab(words.chat, id="chat"):
                chat(api, settings, words, who)
    return page


def guards(settings: Settings) -> list[Middleware]:
    """What a request passes before Gradio sees it: the server's own rules for web pages."""
    everywhere = settings.asks_for_key or settings.share
    hosts = settings.allowed_hosts or (("*",) if everywhere else ())
    return [
        Middleware(ContentSecurity),
        Middleware(
            Origins, keys=Keys(()), address=settings.host, allowed_origins=settings.allowed_origins, allowed_hosts=hosts
        ),
    ]


@contextmanager
def shown(settings: Settings, page: gr.Blocks) -> Iterator[str]:
    """The page listens while the block runs. Raises OSError where it cannot."""
    page.queue(default_concurrency_limit=None)
    try:
        _, local, public = page.launch(
            server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,
            server_port=settings.port or free_port(settings.host),
            share=settings.share,
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
            ssl_keyfile_password=settings.ssl_keyfile_password,
            ssl_verify=False,  # Gradio asks itself whether it listens, by an address that the certificate need not name
            max_file_size=int(settings.max_file_size * 2**20),
            app_kwargs={"middleware": guards(settings)},
            theme=gr.themes.Default(font=SYSTEM_FONTS, font_mono=MONOSPACE),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
        )
        if settings.share and not public:
            raise OSError("Gradio's tunnel could not be opened")
        yield public or local
    finally:
        page.close(verbose=False)


def free_port(host: str) -> int:
    """One that nothing listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def run(settings: Settings) -> int:
    """Show the page until a signal; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks itself whether it listens
    logging.getLogger("httpx2").setLevel(logging.INFO if settings.logs_requests else logging.WARNING)
    told_to_stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told_to_stop.set())
    try:
        with shown(settings, make_page(settings, Api(settings))) as address:
            logger.info("The page is at %s", address)
            told_to_stop.wait()
    except OSError as error:
        logger.error("The page cannot be shown on %s port %d: %s", settings.host, settings.port, error)
        return 1
    return 0


def main() -> int:
    """The page's process."""
    settings = Settings.model_validate_json(os.environ.pop(VARIABLE))
    with tempfile.TemporaryDirectory(prefix="tuneserve-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        return run(settings)


if __name__ == "__main__":
    sys.exit(main())
