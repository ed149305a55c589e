"""One part: a form with its bytes, streamed into the storage."""

from contextlib import AsyncExitStack, aclosing

from engines.errors import InvalidRequest
from server.files.files import Content, FileObject
from server.files.form import Field, FilePart, Form
from server.files.upload import limited
from server.http.body import MIB
from server.http.ignored import Ignored
from server.http.validation import MISSING, unknown_parameter
from server.uploads.upload import Upload
from server.uploads.uploads import Uploads

MAX_PART_BYTES = 64 * MIB
"""OpenAI's, and what its clients send unless told otherwise."""


async def receive_part(
    form: Form, uploads: Uploads, upload: Upload, ignored: Ignored, *, refuse_unknown: bool
) -> FileObject:
    """The part that the form brings. Where the form is refused or breaks off, nothing is left.

    Unknown fields are refused, or added to `ignored`.
    """
    content: Content | None = None
    async with AsyncExitStack() as stack, aclosing(form.parts()) as parts:
        async for part in parts:
            _check(part, content)
            if isinstance(part, FilePart):
                pieces = limited(part.pieces, MAX_PART_BYTES, "data")
                content = await stack.enter_async_context(uploads.storing_part(pieces))
            elif refuse_unknown:
                raise unknown_parameter(part.name)
            else:
                ignored.add(part.name[:100])
        if content is None:
            raise InvalidRequest("Missing required parameter: 'data'.", param="data", code=MISSING)
        return await uploads.keep_part(upload, content)


def _check(part: Field | FilePart, content: Content | None) -> None:
    if isinstance(part, Field):
        if part.name == "data":
            raise InvalidRequest("The bytes must be sent as a file: 'data' has no 'filename'.", param="data")
        return
    if part.name != "data":
        raise unknown_parameter(part.name)
    if content is not None:
        raise InvalidRequest("One request brings one part: 'data' is given twice.", param="data")
