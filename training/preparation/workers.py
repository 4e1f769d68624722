"""Scans through several processes: in order, with bounded memory, and going on when a process is killed."""

import multiprocessing
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from modeling_lcm import FCFeatureExtractor

from ..data.triangles import count_edges, to_triangles
from .quality import LOW_COVERAGE, measure
from .sources.base import Scan, Source
from .sources.several import SeveralAtlases
from .stamps import stamps_of
from .with_parent import end_with_parent


CHUNK = 32  # scans that go to a worker at once; slow ones go one by one


@dataclass(frozen=True)
class Result:
    """One scan after reading.

    Args:
        row (`int`): position in the source.
        triangle (`np.ndarray` of shape `(edges,)`, *optional*): float16; `None` if the scan cannot be used.
        record (`dict`): its measures, or `error`.
        series (`np.ndarray` of shape `(volumes, regions)`, *optional*): float16 time series, if they are kept; of
            several atlases one behind the other, flat.
    """

    row: int
    triangle: np.ndarray | None
    record: dict[str, Any] = field(default_factory=dict)
    series: np.ndarray | None = None


@dataclass(frozen=True)
class Job:
    """What every worker needs.

    Args:
        source (`Source`): the scans.
        extractor (`FCFeatureExtractor`): the FC definition.
        pairs (`np.ndarray` of shape `(pairs, 2)`): homotopic regions.
        keep_series (`bool`): whether results have the time series, too.
    """

    source: Source
    extractor: FCFeatureExtractor
    pairs: np.ndarray
    keep_series: bool = False

    def do(self, rows: Sequence[int]) -> list[Result]:
        """Read scans and compute their FC; one that fails gives a result with its error."""
        scans: dict[int, Scan] = {}
        failed: dict[int, Result] = {}
        # Before they are read: a file that changes in between is noticed then.
        stamps = {row: stamps_of(self.source.files(row)) for row in rows}
        for row in rows:
            try:
                scans[row] = self.source.read(row)
            except Exception as error:  # whatever a damaged file makes a reader raise, the other scans go on
                failed[row] = _failure(row, error)
        matrices = self._connectivity(scans, failed)
        results = [failed[row] if row in failed else self._result(row, scans[row], matrices[row]) for row in rows]
        return [replace(result, record=result.record | {"source": stamps[result.row]}) for result in results]

    def _connectivity(self, scans: dict[int, Scan], failed: dict[int, Result]) -> dict[int, np.ndarray]:
        """FC of all scans at once; if one is refused, one by one."""
        matrices: dict[int, np.ndarray] = {}
        for kind in {scan.kind for scan in scans.values()}:
            rows = [row for row, scan in scans.items() if scan.kind == kind]
            for group in [rows, *([row] for row in rows)]:
                todo = [row for row in group if row not in matrices]
                if not todo:
                    continue
                try:
                    matrices |= zip(todo, self._extract(kind, [scans[row].values for row in todo]), strict=True)
                except (ValueError, TypeError) as error:
                    if len(group) == 1:
                        failed[group[0]] = _failure(group[0], error)
        return matrices

    def _extract(self, kind: str, values: list[np.ndarray]) -> np.ndarray:
        with warnings.catch_warnings():
            # Regions without signal are counted in the quality columns; any other warning is the user's to read.
            warnings.filterwarnings("ignore", ".*Their correlations are set to 0")
            given = np.stack(values) if kind == "connectivity" else values
            arguments: dict[str, Any] = {kind: given}
            return self.extractor(**arguments)["connectivity"]

    def _result(self, row: int, scan: Scan, matrix: np.ndarray) -> Result:
        record = measure(matrix, self.pairs) | {"volumes": scan.volumes, "mean_fd": scan.mean_fd}
        record["named"] = scan.named
        if scan.remarks:
            record["remarks"] = list(scan.remarks)
        if scan.coverage is not None:
            low = np.flatnonzero(scan.coverage < LOW_COVERAGE).tolist()  # a region without voxels is NaN: not low
            record["low_coverage"] = [[region, round(float(scan.coverage[region]), 3)] for region in low]
        return Result(
            row, to_triangles(matrix[None])[0], record, standardise(scan.values) if self.keep_series else None
        )


@dataclass(frozen=True)
class AtlasJobs:
    """The same scans in several atlases; a scan's results stand behind each other.

    Args:
        source (`SeveralAtlases`): which scan of every atlas's source belongs to which row.
        jobs (`tuple[Job, ...]`): one per atlas.
    """

    source: SeveralAtlases
    jobs: tuple[Job, ...]

    def do(self, rows: Sequence[int]) -> list[Result]:
        """As [`Job.do`]: `triangle` and `series` hold all atlases, NaN or nothing where a scan lacks one.

        The record has the measures of the first atlas that could be read, and under `atlases` those of each.
        """
        found: dict[int, list[Result | None]] = {row: [None] * len(self.jobs) for row in rows}
        for number, job in enumerate(self.jobs):
            own = {self.source.rows[row][number]: row for row in rows}
            here = [place for place in own if place is not None]
            for result in job.do(here):
                found[own[result.row]][number] = result
        return [self._joined(row, results) for row, results in found.items()]

    def _joined(self, row: int, results: list[Result | None]) -> Result:
        records = [{} if result is None else result.record for result in results]
        stamps = [stamp for record in records for stamp in record.pop("source", [])]
        usable = [result for result in results if result is not None and result.triangle is not None]
        errors = [record["error"] for record in records if "error" in record]
        record = dict(usable[0].record) if usable else {"error": "; ".join(dict.fromkeys(errors))}
        record |= {"source": stamps, "atlases": records}
        if not usable:
            return Result(row, None, record)
        triangles = [
            np.full(count_edges(job.extractor), np.nan, np.float16)
            if result is None or result.triangle is None
            else result.triangle
            for job, result in zip(self.jobs, results, strict=True)
        ]
        series = [result.series.ravel() for result in usable if result.series is not None]
        return Result(row, np.concatenate(triangles), record, np.concatenate(series) if series else None)


def standardise(values: np.ndarray) -> np.ndarray:
    """Time series `(volumes, regions)` with mean 0 and deviation 1 per region, float16; no signal becomes 0.

    FC of these is that of the scanner's units, whose numbers float16 could not hold.
    """
    signals = np.asarray(values, dtype=np.float64)
    centred = signals - signals.mean(axis=0)
    spread = centred.std(axis=0)
    kind = values.dtype if values.dtype in (np.float16, np.float32) else np.float64
    rounding = 8 * np.finfo(kind).eps * np.abs(signals).max(axis=0, initial=0)
    alive = spread > rounding  # false for NaN, too
    return np.where(alive, centred / np.where(alive, spread, 1), 0).astype(np.float16)


def _failure(row: int, error: BaseException) -> Result:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return Result(row, None, {"error": f"{kind}{error}"})


_job: Job | AtlasJobs | None = None


def _start(job: Job | AtlasJobs) -> None:
    global _job
    end_with_parent()
    _job = job
    torch.set_num_threads(1)  # the workers share the cores already


def _work(rows: Sequence[int]) -> list[Result]:
    if _job is None:
        raise RuntimeError("The worker was not started.")
    return _job.do(rows)


def run(job: Job | AtlasJobs, rows: Sequence[int], workers: int) -> Iterator[Result]:
    """Do scans, in one process or several.

    A worker that is killed (out of memory, usually) costs the scans it had at hand a second try, one by one; a scan
    that kills its worker again is given up.

    Args:
        job (`Job`): what to do.
        rows (`Sequence[int]`): scans, positions in the source.
        workers (`int`): processes; 1 does everything here.

    Yields:
        Results in the order of `rows`, but for scans that needed a second try.
    """
    size = 1 if job.source.slow else CHUNK
    chunks = deque(rows[start : start + size] for start in range(0, len(rows), size))
    if workers == 1 or job.source.in_memory:
        for chunk in chunks:
            yield from job.do(chunk)
        return
    suspects: list[int] = []
    while chunks:
        yield from _pool(job, chunks, workers, suspects, ahead=2 * workers)
        alone: deque[Sequence[int]] = deque([row] for row in suspects)
        suspects.clear()
        while alone:
            again: list[int] = []
            yield from _pool(job, alone, 1, again, ahead=1)
            for row in again:
                yield Result(row, None, {"error": "its worker process was killed twice; is there enough memory?"})


def _pool(
    job: Job | AtlasJobs, chunks: deque[Sequence[int]], workers: int, suspects: list[int], ahead: int
) -> Iterator[Result]:
    """Empty `chunks` with a pool; when it breaks, put what was at hand into `suspects` and return."""
    waiting: deque[tuple[Sequence[int], Future[list[Result]]]] = deque()
    with ProcessPoolExecutor(workers, _context(), _start, (job,)) as pool:
        try:
            while chunks or waiting:
                # Few chunks ahead: results that have not been fetched yet are what memory goes to.
                while chunks and len(waiting) < ahead:
                    waiting.append((chunks[0], pool.submit(_work, chunks[0])))
                    chunks.popleft()
                results = waiting[0][1].result()
                waiting.popleft()
                yield from results
        except BrokenProcessPool:
            for chunk, future in waiting:
                if future.done() and future.exception() is None:
                    yield from future.result()
                else:
                    suspects.extend(chunk)


def _context() -> Any:
    """A server that has imported everything and forks workers off: quick, and safe with torch's threads."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.preparation.worker_server", "training.preparation.workers"])
    return context
