"""Tables and scans -> one data set folder."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.atlases import ATLASES, find_atlas, region_coordinates, region_names

from ..command_line.cli import did_you_mean
from ..command_line.settings import default_of
from ..data.labels import infer_variable, label_columns, read_positive
from ..data.triangles import count_edges
from ..storage.files import claim, require_new, target_of
from .arguments import PATHS, PrepareArguments, in_each_atlas
from .assemble import Excluded, PreparedCohort, assemble
from .first_scans import refuse_other_measures
from .quality import Rules, homotopic_pairs
from .recipes import load_recipe
from .recognise import DATASET, recognise
from .shards import FinishedScans, Shard, ShardWriter, open_plan, work_folder
from .sources.base import DEFAULT_ATLAS, Source
from .sources.images import ImageSource
from .sources.opening import INPUTS, open_source
from .sources.several import SeveralAtlases, join_sources
from .sources.tables import read_table
from .stamps import are_unchanged
from .table import check_table, describe, identifiers
from .workers import AtlasJobs, Job, run


_COPIES = 3  # finished scans, the files that a data set is copied from, and the data set: 2 bytes a value each


def prepare(arguments: PrepareArguments) -> Path:
    """Read, check and store a cohort.

    Finished scans are kept beside the output until it is complete: a run that was killed goes on when it is repeated.

    Args:
        arguments (`PrepareArguments`): where everything lies.

    Returns:
        The folder of the data set: Arrow data with `subject_id`, `session`, phenotype columns, quality columns
        (`qc_...`) and `connectivity` (float16 upper triangle), `fc_definition.json`, `quality.json`, `quality.html`,
        `README.md`, and `parquet/`. With `shard`, the folder of finished scans.

    Raises:
        ValueError: a table or setting that does not fit, no usable scan, or with `bad_scans="stop"` a scan that cannot
            be used; the message names the file, scan or row.
        FileNotFoundError: a table or folder, or every scan, is missing.
        FileExistsError: the output folder holds something already.
    """
    if arguments.shard is not None:  # other shards of this output run at the same time; each has a lock of its own
        return _prepare(arguments, target_of(require_new(arguments.output)))
    with claim(arguments.output) as output:
        return _prepare(arguments, output)


def _prepare(arguments: PrepareArguments, output: Path) -> Path:
    recipe = load_recipe(arguments.recipe)
    arguments, told = _with_recognised(recipe.complete(arguments, PATHS))
    rules = Rules(
        **{item.name: getattr(arguments, item.name) for item in fields(Rules) if hasattr(arguments, item.name)}
    )
    settings, source = _open(arguments, lambda table: check_table(table, arguments, recipe))
    source.remarks[:0] = told + [line for each in settings if (line := _unknown_atlas(str(each.atlas)))]
    if arguments.keep_time_series and source.kind != "time_series":
        raise ValueError("keep_time_series needs time series or images; FC matrices hold none. Leave it out.")
    expected = arguments.absent_scans == "expected"
    excluded = [Excluded(absent.place, absent.reason, expected) for absent in source.absent]
    if arguments.bad_scans == "stop" and source.absent and not expected:
        raise FileNotFoundError(source.absent[0].reason)
    table, cleaned, excluded_rows = describe(arguments, recipe, source)
    positive = {variable.name: variable.positive for variable in recipe.variables if variable.positive is not None}
    labels = {name: infer_variable(table, name, "categorical").labels for name in label_columns(table)}
    positive |= read_positive(arguments.positive, labels)
    excluded += [Excluded(source.places[row], reason, True) for row, reason in excluded_rows.items()]
    rows = [row for row in range(len(source.table)) if row not in excluded_rows]
    job = _make_job(settings, source)
    for part, own in _parts(job, rows):
        refuse_other_measures(part.source, part.extractor, own)
    work = work_folder(output)
    _require_room(output.parent, len(rows) * sum(count_edges(part.extractor) for part, _ in _parts(job, rows)))
    _read_scans(arguments, job, rows, work)
    if arguments.shard is not None:
        return work
    if len(settings) == 1:
        arguments = settings[0]
    first, *others = (part.extractor for part, _ in _parts(job, rows))
    cohort = PreparedCohort(
        recipe, table, cleaned, source, first, rules, excluded, asdict(arguments), positive, tuple(others)
    )
    merges = arguments.merge_shards is not None
    scans = FinishedScans.open(
        work,
        arguments.merge_shards or 1,
        len(rows),
        count_edges(first),
        # What this run has read itself is not read once more.
        lambda record: are_unchanged(record.get("source"), source.files(rows[record["row"]]), with_content=merges),
    )
    return assemble(output, cohort, scans, rows, work, arguments.reference, arguments.parquet)


def _require_room(folder: Path, values: int) -> None:
    """Refuse to begin where the finished scans and the data set made of them find no room.

    Raises:
        ValueError: there is less room than both take; says how much.
    """
    place = next(each for each in (folder, *folder.parents) if each.is_dir())
    needed, free = 2 * values * _COPIES, shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"{place} has {free / 1e9:.2f} GB of free space, and the FC of these scans takes about {needed / 1e9:.2f} "
            "GB while it is prepared: free space, or choose another output."
        )


def _open(arguments: PrepareArguments, check: Callable[[pd.DataFrame], None]) -> tuple[list[PrepareArguments], Source]:
    """The settings of every atlas, each with its id; and the scans, in one atlas or in several."""
    settings = in_each_atlas(arguments)
    sources = [open_source(each, check) for each in settings]
    atlases = [
        source.atlas_id() or str(each.atlas or DEFAULT_ATLAS) for each, source in zip(settings, sources, strict=True)
    ]
    settings = [replace(each, atlas=atlas) for each, atlas in zip(settings, atlases, strict=True)]
    if len(settings) == 1:
        return settings, sources[0]
    for source in sources:
        if isinstance(source, ImageSource):
            source.only_atlas = False
    return settings, join_sources(sources, atlases, identifiers(arguments))


def _unknown_atlas(atlas: str) -> str:
    """A remark about an atlas's name that this package does not know, but that resembles one it knows."""
    near = "" if find_atlas(atlas) is not None else did_you_mean(atlas.lower(), ATLASES)
    return f"The atlas {atlas!r} is not known here and taken as a name of your own.{near}" if near else ""


def _make_job(settings: Sequence[PrepareArguments], source: Source) -> Job | AtlasJobs:
    sources = source.parts if isinstance(source, SeveralAtlases) else [source]
    jobs = []
    for each, part in zip(settings, sources, strict=True):
        extractor = make_extractor(each, part)
        jobs.append(Job(part, extractor, pairs_of(extractor), each.keep_time_series))
    return AtlasJobs(source, tuple(jobs)) if isinstance(source, SeveralAtlases) else jobs[0]


def _parts(job: Job | AtlasJobs, rows: Sequence[int]) -> list[tuple[Job, list[int]]]:
    """The job of every atlas, and the rows of its source."""
    if isinstance(job, Job):
        return [(job, list(rows))]
    numbers = range(len(job.jobs))
    own = [[each for row in rows if (each := job.source.rows[row][number]) is not None] for number in numbers]
    return list(zip(job.jobs, own, strict=True))


def _with_recognised(arguments: PrepareArguments) -> tuple[PrepareArguments, list[str]]:
    """Settings that read what `input` is, where the user has not set them; and words about it.

    Raises:
        ValueError: another setting says where the scans are, too; or the input cannot be read.
        FileNotFoundError: there is no such input, or no table.
    """
    if arguments.input is None:
        return arguments, []
    given = [name for name in INPUTS if getattr(arguments, name) is not None]
    if given:
        raise ValueError(f"input is recognised, and {given[0]} says where the scans are: give one of them.")
    found = recognise(
        arguments.input,
        arguments.participants,
        [arguments.atlas] if isinstance(arguments.atlas, str) else arguments.atlas or [],
    )
    if found.kind == DATASET:
        raise ValueError(f"{found.words} There is nothing to prepare: give it as --data to the next command.")
    free = {item.name for item in fields(arguments) if getattr(arguments, item.name) == default_of(item)}
    changes = {name: value for name, value in found.settings.items() if name in free}
    return replace(arguments, input=None, **changes), [found.words]


def _read_scans(arguments: PrepareArguments, job: Job | AtlasJobs, rows: list[int], work: Path) -> None:
    """Compute FC of every scan that is not finished yet."""
    source = job.source
    definitions = [part.extractor.to_dict() for part, _ in _parts(job, rows)]
    plan: dict[str, Any] = {"scans": [source.places[row] for row in rows]}
    plan |= {"fc": definitions[0] if len(definitions) == 1 else definitions}
    plan |= {"settings": source.settings, "keep_time_series": arguments.keep_time_series}
    plan["shards"] = arguments.merge_shards or (Shard.parse(arguments.shard).count if arguments.shard else 1)
    open_plan(work, plan)
    if arguments.merge_shards is not None:
        return
    shard = Shard() if arguments.shard is None else Shard.parse(arguments.shard)
    writer = ShardWriter(
        work, shard, lambda record: are_unchanged(record.get("source"), source.files(rows[record["row"]]))
    )
    try:
        todo = [number for number in shard.rows(len(rows)) if number not in writer.finished]
        number_of = {rows[number]: number for number in todo}
        results = run(job, [rows[number] for number in todo], arguments.workers)
        for result in tqdm(results, total=len(todo), desc="scans", unit="scan", leave=False):
            if "error" in result.record and arguments.bad_scans == "stop":
                raise ValueError(f"{source.places[result.row]}: {result.record['error']}")
            writer.write(number_of[result.row], result.triangle, result.record, result.series)
    finally:
        writer.close()


def make_extractor(arguments: Any, source: Source) -> FCFeatureExtractor:
    """The FC definition; regions of an atlas that we do not know are those that the files agree on."""
    options: dict[str, Any] = {"atlas": arguments.atlas, "estimator": arguments.estimator}
    known = find_atlas(arguments.atlas) if arguments.atlas is not None else None
    names = source.region_names()
    if arguments.regions is not None:
        regions = read_table(arguments.regions)
        if "name" not in regions.columns:
            raise ValueError(f"{arguments.regions} has no column 'name'; it has {', '.join(regions.columns)}.")
        names = regions["name"].tolist()
    elif names is None and known is not None:
        names = region_names(known)
    if names is not None:
        return FCFeatureExtractor(region_names=names, **options)
    if known is not None:
        return FCFeatureExtractor(**options)
    if source.num_regions() is None:  # no file can be read
        try:
            source.read(0)
        except (ValueError, OSError) as error:
            raise ValueError(f"{source.places[0]}: {error}") from error
    return FCFeatureExtractor(num_regions=source.num_regions(), **options)


def pairs_of(extractor: FCFeatureExtractor) -> np.ndarray:
    """Homotopic regions of an FC definition, `(pairs, 2)`."""
    known = find_atlas(extractor.atlas) if extractor.atlas else None
    if known is None or extractor.region_names != region_names(known):
        return homotopic_pairs(extractor.region_names, None)
    return homotopic_pairs(extractor.region_names, region_coordinates(known))
