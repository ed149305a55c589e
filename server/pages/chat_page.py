"""The chat: Gradio's, with the server's models behind it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gradio as gr
import openai
from openai.types.chat import ChatCompletionMessageParam

from server.pages.api import Api, told
from server.pages.chat import NotAnImage, read_answer, to_messages, to_options
from server.pages.settings import Settings
from server.pages.words import Words

LOOKS_EVERY = 3.0
"""Seconds between two questions whether the server's engine has started."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """What a page knows of whoever looks at it."""

    key: gr.Textbox
    model: gr.Dropdown
    """The one that is talked with."""
    base: gr.State
    """Name of the server's own model, which its jobs train; None until it has said it."""


def refused(error: Exception) -> gr.Error:
    """Shown until it is closed."""
    message = told(error) if isinstance(error, openai.OpenAIError) else str(error)
    return gr.Error(message, duration=None, print_exception=False)


def visitor(page: gr.Blocks, api: Api, settings: Settings, words: Words) -> Visitor:
    """The fields for a key and for a model, in the page that is being made. The list of models is asked for when the
    page opens, when it is opened itself, and when the key changes."""
    with gr.Row():
        key = gr.Textbox(
            label=words.key, info=words.key_help, type="password", visible=settings.asks_for_key, max_lines=1
        )
        model = gr.Dropdown(label=words.model, info=words.model_help, choices=[], allow_custom_value=True, scale=2)
    base = gr.State(None)

    async def list_models(key: str, chosen: str | None) -> tuple[Any, str | None]:
        if settings.asks_for_key and not key:
            return gr.update(choices=[], value=None), None
        try:
            names = await api.models_once_ready(key)
        except openai.OpenAIError as error:
            raise refused(error) from None
        first = next(iter(names), None)
        return gr.update(choices=names, value=chosen if chosen in names else first), first

    async def list_again(key: str, chosen: str | None, base: str | None) -> tuple[Any, Any]:
        """By the clock, until the server's engine has started."""
        if base is not None or (settings.asks_for_key and not key):
            return gr.skip(), gr.skip()
        try:
            return await list_models(key, chosen)
        except gr.Error:  # it was told when the page opened
            return gr.skip(), gr.skip()

    found = [model, base]
    gr.on([model.focus, key.submit, key.blur], list_models, [key, model], found, api_name="models", queue=False)
    page.load(list_models, [key, model], found, api_visibility="private")
    gr.Timer(LOOKS_EVERY).tick(list_again, [key, model, base], found, api_visibility="private", show_progress="hidden")
    return Visitor(key, model, base)


def chat(api: Api, settings: Settings, words: Words, who: Visitor) -> gr.ChatInterface:
    """Streaming, stop, regenerate, edit and undo are Gradio's."""
    default = words.left_to_server
    system = gr.Textbox(label=words.system, info=words.system_help, value=settings.system or "", lines=2, render=False)
    temperature = gr.Number(
        label=words.temperature, info=default, value=settings.temperature, minimum=0, step=0.1, render=False
    )
    max_tokens = gr.Number(
        label=words.max_tokens, info=default, value=settings.max_tokens, minimum=1, precision=0, render=False
    )

    async def answer(
        asked: str | Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        key: str,
        model: str | None,
        system: str,
        temperature: float | None,
        max_tokens: float | None,
    ) -> AsyncIterator[list[dict[str, Any]]]:
        if not model:
            raise refused(ValueError(words.no_model))
        try:
            messages = cast(list[ChatCompletionMessageParam], to_messages(system, history, asked))
            options = to_options(model, temperature, max_tokens)
            async with await api.chat(key, messages, options) as chunks:
                async for so_far in read_answer(chunks):
                    yield so_far.shown(words.thinking)
        except (openai.OpenAIError, NotAnImage) as error:
            raise refused(error) from None
        if so_far.finish == "length":
            gr.Info(words.cut_short)

    return gr.ChatInterface(
        answer,
        multimodal=settings.takes_images,
        textbox=gr.MultimodalTextbox(file_types=["image"], file_count="multiple") if settings.takes_images else None,
        chatbot=gr.Chatbot(height="65vh", allow_tags=False, buttons=["copy", "copy_all"], show_label=False),
        additional_inputs=[who.key, who.model, system, temperature, max_tokens],
        additional_inputs_accordion=gr.Accordion(words.settings, open=False),
        editable=True,
        save_history=True,
        api_name="chat",
        concurrency_limit=None,
        analytics_enabled=False,
    )
