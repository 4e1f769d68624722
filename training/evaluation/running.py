"""The folds of an evaluation, one after the other or in several processes, each kept as soon as it is done."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import torch

from ..data.folds import Folds
from ..reporting.results import LCM, METRIC_TITLES, number_text
from ..storage.files import read_json, write_json
from ..storage.manifest import require_intact_file, seal_file
from ..trainer.threads import threads
from .design import Design, Parts
from .fold import Member, fit_baselines, join_fold, run_fold, train_member
from .pool import BASE_BYTES, Job, affordable, run_jobs


WEIGHT_BYTES = (
    40  # weight, gradient, two moments of the optimiser, copies of the best epoch; activations of small nets
)
EDGE_BYTES = 40  # an edge of a scan in float64, standardised, copied and decomposed


@dataclass(frozen=True)
class Place:
    """A fold, or an external test, and where its result goes.

    Args:
        name (`str`): for messages.
        path (`Path`): its `result.json`.
        repeat (`int`): of which cross-validation.
        fold (`int`): its number.
        external (`str`, *optional*): the folder of the external data set, if it is such a test.
    """

    name: str
    path: Path
    repeat: int
    fold: int = 0
    external: str | None = None

    def result(self) -> dict[str, Any]:
        """What was written; raises `ValueError` where it has changed since."""
        require_intact_file(self.path)
        return read_json(self.path)


def require_external_values(design: Design) -> None:
    """Raise `ValueError` when nobody in an external data set has a value of any task."""
    tasks = design.recipe.tasks
    for folder in design.recipe.arguments.external:
        if not any(len(task.known(design.external(folder))) for task in tasks):
            raise ValueError(
                f"The external data set {folder} has no value of {', '.join(task.name for task in tasks)} that the "
                "tested cohort knows: it cannot be scored."
            )


def fold_places(design: Design, folds: Sequence[Folds], output: Path) -> list[Place]:
    """All folds of all repeats, and behind them the external tests, one per repeat."""
    places: list[Place] = []
    for repeat, each in enumerate(folds):
        for fold in range(len(each.test_subjects)):
            folder = f"repeat_{repeat}_fold_{fold}" if len(folds) > 1 else f"fold_{fold}"
            places.append(Place(f"fold {len(places) + 1}", output / folder / "result.json", repeat, fold))
    for data in design.recipe.arguments.external:
        name = Path(data).name
        for repeat in range(design.recipe.arguments.repeats):
            path = output / f"external_{name}_{repeat}" / "result.json"
            places.append(Place(f"external data set {name}", path, repeat, 0, data))
    return places


def run_places(design: Design, folds: Sequence[Folds], places: Sequence[Place]) -> None:
    """Do those that have no result yet, and show the first numbers of each as soon as it is there.

    Args:
        design (`Design`): data and recipe; `workers` says how many processes, 0 for as many as there are CPUs.
        folds (`Sequence[Folds]`): of every repeat.
        places (`Sequence[Place]`): what to do.
    """
    todo = [place for place in places if not place.path.is_file()]
    arguments = design.recipe.arguments
    pieces = len(todo) * (arguments.ensemble + 1)  # its members, and its baselines
    wanted = min(arguments.workers or _usable_cpus(), pieces)
    workers, sentence = affordable(wanted, _bytes_each(design)) if wanted > 1 else (1, None)
    if sentence is not None:
        print(sentence, flush=True)
    run = _one_by_one if workers <= 1 else _in_parallel
    started = time.monotonic()
    for done, (place, result) in enumerate(run(design, folds, todo, workers), start=1):
        write_json(place.path, result)
        seal_file(place.path)
        minutes = (time.monotonic() - started) / done * (len(todo) - done) / 60
        still = f"about {minutes:.0f} min" if minutes >= 1 else "less than a minute"
        left = f", {still} left" if done < len(todo) else ""
        ended = len(places) - len(todo) + done
        print(f"{place.name.capitalize()} ({ended} of {len(places)} done{left})", flush=True)
        print(_first_look(place.result()), flush=True)


def _usable_cpus() -> int:
    """CPUs that this process may use, by affinity and a container's quota; one process where a GPU does the work."""
    return 1 if torch.cuda.is_available() else joblib.cpu_count()


def _one_by_one(
    design: Design, folds: Sequence[Folds], places: Iterable[Place], workers: int
) -> Iterator[tuple[Place, dict[str, Any]]]:
    for place in places:
        print(f"{place.name.capitalize()} begins", flush=True)
        with threads(design.recipe.arguments.threads):
            parts = _parts(design, folds, place)
            yield place, run_fold(design.recipe, parts, place.path.parent, place.fold, place.repeat)


def _in_parallel(
    design: Design, folds: Sequence[Folds], places: Sequence[Place], workers: int
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Members and baselines of all folds in one pool; a fold's result comes when its last piece does."""
    quiet = replace(design, recipe=replace(design.recipe, **_without_bars(design)))
    members = range(design.recipe.arguments.ensemble)
    jobs, owners = [], []
    for number, place in enumerate(places):
        for member in members:
            jobs.append(Job(place.name, _member, (quiet, folds, place, member)))
        jobs.append(Job(f"{place.name} (baselines)", _baselines, (quiet, folds, place)))
        owners += [number] * (len(members) + 1)
    pieces: list[dict[int, Any]] = [{} for _ in places]
    print(f"{len(places)} folds in {workers} processes", flush=True)
    for number, result in run_jobs(jobs, workers, design.recipe.arguments.threads):
        owner = owners[number]
        pieces[owner][number] = result
        if len(pieces[owner]) == len(members) + 1:
            place = places[owner]
            *trained, others = (pieces[owner].pop(key) for key in sorted(pieces[owner]))
            test = _parts(design, folds, place).test
            yield place, join_fold(design.recipe, test, trained, others, place.fold, place.repeat)


def _without_bars(design: Design) -> dict[str, Any]:
    """Stages without progress bars, which would write over each other."""
    recipe = design.recipe
    pretraining = None if recipe.pretraining is None else replace(recipe.pretraining, progress=False)
    return {
        "pretraining": pretraining,
        "tunings": tuple(replace(tuning, progress=False) for tuning in recipe.tunings),
    }


def _parts(design: Design, folds: Sequence[Folds], place: Place) -> Parts:
    if place.external is not None:
        return design.external_test(place.external)
    return design.fold(folds[place.repeat], place.fold)


def _member(design: Design, folds: Sequence[Folds], place: Place, number: int) -> Member:
    return train_member(design.recipe, _parts(design, folds, place), place.path.parent, place.repeat, number)


def _baselines(design: Design, folds: Sequence[Folds], place: Place) -> dict[str, dict[str, Any]]:
    return fit_baselines(design.recipe, _parts(design, folds, place), place.repeat)


def _bytes_each(design: Design) -> float:
    """What a worker needs, about: the more of training a network and fitting baselines on all scans."""
    edges = sum(part.triangles.shape[1] for part in design.cohort.by_atlas)
    return BASE_BYTES + max(WEIGHT_BYTES * _num_weights(design), EDGE_BYTES * edges * len(design.cohort))


def _num_weights(design: Design) -> float:
    """Weights of the network, about: those of its layers."""
    from modeling_lcm import LCMConfig

    recipe = design.recipe
    if recipe.pretraining is not None:
        configs = [LCMConfig.from_size(recipe.pretraining.size)]
    else:
        configs = [LCMConfig.from_pretrained(tuning.checkpoint) for tuning in recipe.tunings if tuning.checkpoint]
    return max((12 * config.num_hidden_layers * config.hidden_size**2 for config in configs), default=0)


def _first_look(result: dict[str, Any]) -> str:
    """One line per task of a fold's result: every model's first headline metric."""
    lines = []
    for task, entry in result["tasks"].items():
        metric = next(name for name in ("roc_auc", "mae") if name in entry["metrics"][LCM])
        scores = {name: metrics[metric] for name, metrics in entry["metrics"].items()}
        shown = [f"{name} {number_text(metric, score)}" for name, score in scores.items()]
        lines.append(f"  {task}, {METRIC_TITLES[metric]}: {'; '.join(shown)}")
    return "\n".join(lines)
