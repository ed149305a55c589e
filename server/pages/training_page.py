"""From a file to a job: data, task, parameters, and the request that is made of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import openai

from server.pages import form
from server.pages.api import Api
from server.pages.chat_page import Visitor, refused
from server.pages.form import Entry
from server.pages.words import Words
from training.params.task import TASKS

FIRST_TASK = "sft"


def training(api: Api, words: Words, who: Visitor) -> gr.Textbox:
    """The fields, in the page that is being made. Returns the one that holds the id of the job which was started."""
    task = gr.Radio(list(TASKS), value=FIRST_TASK, label=words.task)
    request = gr.Code(
        form.blank(FIRST_TASK, None), language="json", label=words.request, interactive=True, render=False
    )
    with gr.Row():
        with gr.Column(scale=3):
            _data(api, words, who, request)
            _first(api, words, who, task, request)
            _others(words, task, request)
        with gr.Column(scale=2):
            request.render()
            gr.Markdown(words.request_help)
            with gr.Accordion(words.command, open=False):
                command = gr.Code(language="shell", show_label=False, interactive=False)
            with gr.Row():
                dry_run = gr.Button(words.dry_run)
                start = gr.Button(words.start, variant="primary")
            gr.Markdown(words.dry_run_help)
            job = gr.Textbox(label=words.job, interactive=False)

    who.base.change(with_model, [request, who.base], request, api_visibility="private", queue=False)
    request.change(as_command, request, command, api_visibility="private", queue=False)

    async def create(key: str, text: str) -> str:
        return await _create(api, words, key, text, dry=False)

    async def try_out(key: str, text: str) -> str:
        return await _create(api, words, key, text, dry=True)

    start.click(create, [who.key, request], job, api_name="start")
    dry_run.click(try_out, [who.key, request], job, api_name="dry_run")
    return job


def with_model(text: str, model: str | None) -> str:
    return _checked(lambda: form.with_model(text, model))


def as_command(text: str) -> str:
    try:
        return form.as_command(form.read_body(text))
    except ValueError as error:
        return f"# {error}"


async def _create(api: Api, words: Words, key: str, text: str, *, dry: bool) -> str:
    """The id of the job."""
    try:
        body = form.read_body(text)
        job = await api.create_job(key, form.as_dry_run(body) if dry else body)
    except (ValueError, openai.OpenAIError) as error:
        raise refused(error) from None
    gr.Info(words.started.format(job=job["id"]))
    return str(job["id"])


def _data(api: Api, words: Words, who: Visitor, request: gr.Code) -> None:
    """A file of the visitor's goes to the server, and its id into the request."""
    with gr.Row():
        file = gr.File(label=words.upload, file_types=[".jsonl"], height=120)
        there = gr.Dropdown(label=words.on_the_server, choices=[], allow_custom_value=True)

    async def upload(key: str, path: str | None, text: str) -> tuple[str, str | None]:
        if path is None:
            return text, None
        try:
            id = await api.upload(key, Path(path))
            added = form.with_data(text, id)
        except (ValueError, openai.OpenAIError) as error:
            raise refused(error) from None
        finally:
            Path(path).unlink(missing_ok=True)  # the server has it, or nobody
        gr.Info(words.uploaded.format(file=id))
        return added, None

    async def list_files(key: str) -> Any:
        try:
            files = await api.files(key)
        except openai.OpenAIError as error:
            raise refused(error) from None
        return gr.update(choices=[(f"{name} · {id}", id) for name, id in files])

    def add(id: str | None, text: str) -> str:
        return _checked(lambda: form.with_data(text, id)) if id else text

    file.upload(upload, [who.key, file, request], [request, file], api_name="upload")
    there.focus(list_files, who.key, there, api_visibility="private", queue=False)
    there.input(add, [there, request], request, api_visibility="private", queue=False)


def _first(api: Api, words: Words, who: Visitor, task: gr.Radio, request: gr.Code) -> None:
    """What most jobs are given, for each task: one group of them is shown. A change of the task begins a new request,
    and then empties them: what is put into a field goes into the request as it is by then."""
    groups: list[gr.Group] = []
    fields: list[gr.Dropdown | gr.Textbox] = []
    models: list[gr.Dropdown | gr.Textbox] = []
    for name in TASKS:
        with gr.Group(visible=name == FIRST_TASK) as group:
            for entry in form.first(name):
                field = _field(api, who, entry, request)
                (models if entry.name == "model" else fields).append(field)
        groups.append(group)

    def show(task: str) -> list[Any]:
        return [*(gr.update(visible=name == task) for name in TASKS), *[""] * len(fields)]

    def name_model(base: str | None) -> list[str]:
        return [base or ""] * len(models)

    task.change(form.blank, [task, who.base], request, api_visibility="private", queue=False).then(
        show, task, [*groups, *fields], api_visibility="private", queue=False
    ).then(name_model, who.base, models, api_visibility="private", queue=False)
    who.base.change(name_model, who.base, models, api_visibility="private", queue=False)


def _field(api: Api, who: Visitor, entry: Entry, request: gr.Code) -> gr.Dropdown | gr.Textbox:
    """One parameter: what is written there stands in the request at once."""
    label = f"{entry.name} ({entry.default})" if entry.default else entry.name
    if entry.names or entry.choices:
        field = gr.Dropdown(
            ["", *entry.choices], value="", label=label, info=entry.help, allow_custom_value=bool(entry.names)
        )
    else:
        field = gr.Textbox(label=label, info=entry.help, placeholder=entry.placeholder)

    def put(value: str | None, text: str) -> str:
        return _checked(lambda: form.with_value(text, entry, value or ""))

    async def list_names(key: str, model: str | None) -> Any:
        try:
            return gr.update(choices=["", *await _nameable(api, key, entry, model)])
        except openai.OpenAIError as error:
            raise refused(error) from None

    field.change(put, [field, request], request, api_visibility="private", queue=False, trigger_mode="always_last")
    if entry.names:
        field.focus(list_names, [who.key, who.base], field, api_visibility="private", queue=False)
    return field


async def _nameable(api: Api, key: str, entry: Entry, model: str | None) -> list[str]:
    """What a job may name by this parameter, as far as the server knows it."""
    if entry.names == "data":
        return [id for _, id in await api.files(key)]
    made = [job["id"] for job in await api.jobs(key) if job["status"] == "succeeded" and makes(job, entry.names)]
    return [model, *made] if entry.names == "model" and model else made


def makes(job: dict[str, Any], wanted: str | None) -> bool:
    kind = (job.get("result") or {}).get("kind")
    return kind == wanted or (wanted == "checkpoint" and kind in ("model", "adapter"))


def _others(words: Words, task: gr.Radio, request: gr.Code) -> None:
    """Every parameter there is, to be searched."""
    with gr.Accordion(words.more, open=False):
        name = gr.Dropdown(
            _searchable(FIRST_TASK),
            value=None,
            label=words.parameters,
            info=words.more_help,
            allow_custom_value=True,
            num_choices_shown=None,
        )
        told = gr.Markdown()
        with gr.Row():
            value = gr.Dropdown([], label=words.value, allow_custom_value=True, scale=3)
            put = gr.Button(words.set)

    def list_names(task: str) -> tuple[Any, Any, str]:
        return gr.update(choices=_searchable(task), value=None), gr.update(choices=[], value=""), ""

    def describe(task: str, name: str | None) -> tuple[str, Any]:
        if name is None:
            return "", gr.update(choices=[], value="")
        entry = _checked(lambda: form.entry(task, name))
        default = f" · {words.default}: `{entry.default}`" if entry.default else ""
        text = f"**{entry.name}** · {entry.section} · `{entry.shape}`{default}\n\n{entry.help}"
        return text, gr.update(choices=list(entry.choices), value="")

    def set_value(task: str, name: str | None, value: str | None, text: str) -> str:
        if name is None:
            return text
        return _checked(lambda: form.with_value(text, form.entry(task, name), value or ""))

    task.change(list_names, task, [name, value, told], api_visibility="private", queue=False)
    name.input(describe, [task, name], [told, value], api_name="describe", queue=False)
    put.click(set_value, [task, name, value, request], request, api_name="set", queue=False)


def _searchable(task: str) -> list[tuple[str, str]]:
    """By name, section and description."""
    return [
        (f"{'★ ' if entry.starred else ''}{entry.name} · {entry.section} · {entry.help[:120]}", entry.name)
        for entry in form.searched(task)
    ]


Made = TypeVar("Made")


def _checked(make: Callable[[], Made]) -> Made:
    """What was made; what was written wrong is told."""
    try:
        return make()
    except ValueError as error:
        raise refused(error) from None
