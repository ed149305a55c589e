"""All that is kept of answers: made, written behind the answers, and deleted when its time is over."""

import asyncio
import logging

from prometheus_client import CollectorRegistry

from engines.errors import TuneserveError
from server.kept.completions import KeptCompletions
from server.kept.conversations import Conversations
from server.kept.responses import KeptResponses
from server.kept.shelf import Limits
from server.kept.writer import Writer
from server.store.database import Database
from server.store.reserve import DiskReserve

log = logging.getLogger(__name__)

EXPIRY_SECONDS = 60.0
"""Seconds between two looks for what has expired, to delete it. What has expired is not found in any case."""


class Kept:
    def __init__(
        self,
        database: Database,
        reserve: DiskReserve,
        limits: Limits,
        registry: CollectorRegistry,
        *,
        prefix: str,
        keep_completions: bool,
    ) -> None:
        """`limits` are those of each owner, for each kind: so many responses, and as many conversations."""
        self._database = database
        self.writer = Writer(database, registry, prefix=prefix)
        self.conversations = Conversations(database, self.writer, limits, reserve)
        self.completions = KeptCompletions(database, self.writer, limits, reserve, asked_for=keep_completions)
        self.responses = KeptResponses(database, self.writer, self.conversations, limits, reserve)

    async def delete_expired_for_ever(self) -> None:
        while True:
            try:
                await self.delete_expired()
            except TuneserveError as error:
                log.warning("Kept answers that have expired could not be deleted: %s", error)
            await asyncio.sleep(EXPIRY_SECONDS)

    async def delete_expired(self) -> None:
        async with self._database.freeing() as connection:
            for shelf in (self.completions.shelf, self.conversations.shelf, self.responses.shelf):
                await shelf.delete_expired(connection)
