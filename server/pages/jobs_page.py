"""Jobs: how each is doing, what can be done with it, and the way from its result to the chat."""

import asyncio
from typing import Any

import gradio as gr
import openai
import pandas

from server.pages.api import Api
from server.pages.chat_page import Visitor, refused
from server.pages.follow import ACTIONS, ENDED, columns, label, points, summary
from server.pages.words import Words

EVERY_SECONDS = 2.0
METRICS = ["step", "value", "metric"]


def jobs(api: Api, words: Words, who: Visitor, started: gr.Textbox, tabs: gr.Tabs) -> None:
    """The fields, in the page that is being made. A job that was `started` is followed at once; chatting with a result
    goes to the tab `chat` of `tabs`."""
    with gr.Row():
        chosen = gr.Dropdown(label=words.job, choices=[], allow_custom_value=True, scale=3)
        buttons = {name: gr.Button(getattr(words, name), interactive=False) for name in ACTIONS}
        talk = gr.Button(words.talk, variant="primary", interactive=False)
    told = gr.Markdown()
    curve = gr.LinePlot(x="step", y="value", color="metric", title=words.curve, height=300)
    log = gr.Textbox(label=words.log, lines=12, max_lines=12, interactive=False, autoscroll=True)
    with gr.Accordion(words.files, open=False):
        files = gr.Dataframe(headers=["path", "bytes"], show_label=False, interactive=False)
    over = gr.State(False)
    clock = gr.Timer(EVERY_SECONDS)
    shown = [told, curve, log, files, talk, *buttons.values(), over]

    async def list_jobs(key: str) -> Any:
        try:
            return gr.update(choices=[(label(job), job["id"]) for job in await api.jobs(key)])
        except openai.OpenAIError as error:
            raise refused(error) from None

    async def look(key: str, id: str | None) -> list[Any]:
        if not id:
            return [words.no_job, None, "", [], *[gr.update(interactive=False)] * (1 + len(ACTIONS)), True]
        try:
            return _shown(*await _all_of(api, key, id))
        except openai.OpenAIError as error:
            raise refused(error) from None

    async def look_again(key: str, id: str | None, over: bool) -> list[Any]:
        """By the clock: nothing is asked of a job that has ended, or of none."""
        if over or not id:
            return [gr.skip()] * len(shown)
        return await look(key, id)

    async def open_chat(key: str, id: str | None) -> tuple[Any, Any]:
        model = (await api.job(key, id))["fine_tuned_model"] if id else None
        if model is None:
            raise refused(ValueError(words.nothing_made))
        return gr.update(choices=await api.models(key), value=model), gr.update(selected="chat")

    chosen.focus(list_jobs, who.key, chosen, api_name="jobs", queue=False)
    chosen.change(look, [who.key, chosen], shown, api_name="look")
    started.change(lambda id: (id, gr.update(selected="jobs")), started, [chosen, tabs], api_visibility="private")
    clock.tick(look_again, [who.key, chosen, over], shown, api_visibility="private", show_progress="hidden")
    talk.click(open_chat, [who.key, chosen], [who.model, tabs], api_name="talk")
    for name, button in buttons.items():
        button.click(_acting(api, words, name), [who.key, chosen], over, api_name=name).then(
            look, [who.key, chosen], shown, api_visibility="private"
        )


def _acting(api: Api, words: Words, action: str) -> Any:
    async def act(key: str, id: str | None) -> bool:
        if not id:
            raise refused(ValueError(words.no_job))
        try:
            await api.act(key, id, action)
        except openai.OpenAIError as error:
            raise refused(error) from None
        return False

    return act


async def _all_of(api: Api, key: str, id: str) -> tuple[Any, ...]:
    return tuple(
        await asyncio.gather(
            api.job(key, id), api.curve(key, id), api.messages(key, id), api.log_end(key, id), api.artifacts(key, id)
        )
    )


def _shown(
    job: dict[str, Any],
    curve: list[dict[str, Any]],
    messages: list[dict[str, Any]],
    log: str,
    files: list[dict[str, Any]],
) -> list[Any]:
    """Values of the fields, in their order."""
    found = points(curve)
    frame = pandas.DataFrame(columns(found), columns=METRICS) if found else None  # of no points no axis can be drawn
    rows = [[file["path"], file["bytes"]] for file in files]
    buttons = [gr.update(interactive=job["status"] in states) for states in ACTIONS.values()]
    talk = gr.update(interactive=job["fine_tuned_model"] is not None)
    return [summary(job, curve, messages), frame, log, rows, talk, *buttons, job["status"] in ENDED]
