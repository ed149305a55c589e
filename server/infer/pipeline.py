"""A data set answered: `run(params, report)`, in a worker process or in several that share the rows."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from engines.errors import InvalidRequest
from server.infer.answers import Asker
from server.infer.beginning import merged, merged_folder, with_checkpoint
from server.infer.endpoint import answers_with, make_endpoint, started
from server.infer.group import Group
from server.infer.results import Results
from server.infer.rows import Row, Rows
from server.infer.scores import check_metrics, measure
from training.folder import Result
from training.params.infer import AnswerParams
from training.params.task import ANSWERS
from training.report import Report

TELL_SECONDS = 1.0
"""Seconds between two events that tell how far it has come."""


def run(params: AnswerParams, report: Report) -> Result:
    """Write the answers to `result_path`, or to the job's folder, and measure them. Raises TuneserveError, OSError."""
    group = Group.of_environment(params)
    given = params
    params = with_checkpoint(params)
    check_metrics(params)
    from_checkpoint = not given.names_data  # then it is the training's own data, of which the part set aside is asked
    rows = Rows(params, all_of_dataset="split_dataset_ratio" not in given.model_fields_set and not from_checkpoint)
    for note in rows.notes:
        report.message(note, level="warn")
    path = Path(params.result_path).expanduser() if params.result_path else report.folder.path / ANSWERS
    results = Results(path)
    if group.count > 1 and params.merge_lora:
        raise InvalidRequest("merging is the work of one process: merge first", param="merge_lora")
    with report.stop_deferred():
        params = group.share(merged(params, report))
        try:
            whole = asyncio.run(_Work(params, rows, results, report, group).run())
        finally:
            shutil.rmtree(merged_folder(report.folder), ignore_errors=True)
        if not whole or not group.wait(lambda: report.stop_requested):
            return Result(status="stopped", final_step=len(results))
        return _ended(params, rows, results, report, group)


def _ended(params: AnswerParams, rows: Rows, results: Results, report: Report, group: Group) -> Result:
    results.look()
    metrics: dict[str, float] = {}
    if group.is_first:
        _tell(report, results, rows)
        results.put_in_order()
        failed = sum("error" in line for line in results.lines())
        if failed:
            report.message(f"{failed} of {len(rows)} rows were refused; their lines say why.", level="warn")
        metrics = measure(params, results.lines())
        if metrics:
            report.evaluation(len(rows), metrics)
        elif params.metric:
            report.message("no row has an answer to compare with: nothing was measured", level="warn")
    artifact = ANSWERS if params.result_path is None else None
    return Result(status="succeeded", artifact=artifact, kind="answers", final_step=len(rows), metrics=metrics)


@dataclass(slots=True)
class _Work:
    params: AnswerParams
    rows: Rows
    results: Results
    report: Report
    group: Group
    tokens: int = field(default=0, init=False)
    """Tokens of answers so far, in this process."""

    async def run(self) -> bool:
        """Whether every row of this process's share is answered; else it was stopped."""
        remaining = self._remaining()
        first = next(remaining, None)
        if first is None:
            return True
        self.report.message(f"{len(self.rows)} rows to answer, {len(self.results)} of them are answered already.")
        endpoint = make_endpoint(self.params)
        async with started(endpoint, self._stopped) as ready:
            if not ready:
                return False
            await endpoint.check_generates(answers_with(self.params, endpoint))
            self.report.started(total_steps=len(self.rows), rows=len(self.rows))
            answering = asyncio.create_task(self._answer(first, remaining, Asker(endpoint, self.params)))
            telling = asyncio.create_task(self._tell())
            try:
                return await endpoint.while_alive(answering, self._stopped) is not None
            finally:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)

    def _stopped(self) -> bool:
        return self.report.stop_requested

    def _remaining(self) -> Iterator[Row]:
        """The rows of this process's share that are not answered. Raises Conflict."""
        return (row for row in self.rows if self.group.is_mine(row.index) and not self.results.has(row.index, row.row))

    async def _answer(self, first: Row, remaining: Iterator[Row], asker: Asker) -> bool:
        rows = chain((first,), remaining)
        async with asyncio.TaskGroup() as workers:
            for _ in range(_concurrency(self.params)):
                workers.create_task(self._work(rows, asker))
        return True

    async def _work(self, rows: Iterator[Row], asker: Asker) -> None:
        """One row after another: whose turn it is, is shared."""
        for row in rows:
            line = await asker.line(row)
            self.results.add(line)
            self.tokens += line.get("usage", {}).get("completion_tokens", 0)

    async def _tell(self) -> None:
        began = time.monotonic()
        told = -1
        while True:
            await asyncio.sleep(TELL_SECONDS)
            if self.group.count > 1:
                self.results.look()
            if len(self.results) != told:
                told = len(self.results)
                rate = self.tokens / (time.monotonic() - began)
                _tell(self.report, self.results, self.rows, output_tokens_per_second=rate)


def _tell(report: Report, results: Results, rows: Rows, **measured: float) -> None:
    done, whole = len(results), len(rows)
    report.step(done, total_steps=whole, epoch=done / whole, logs=measured)


def _concurrency(params: AnswerParams) -> int:
    """Requests at a time: the engine's slots are full, and the next requests wait beside them."""
    slots = params.max_batch_size or params.max_num_seqs
    return slots + min(slots, params.max_num_queued_reqs)
