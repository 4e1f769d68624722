"""What an evaluation does: its settings, the variables that are predicted, and the folds."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from accelerate import PartialState

from modeling_lcm import BEIVariable

from ..data.cohort import Cohort, load_cohort
from ..data.combine import for_checkpoint, join_subjects, pool
from ..data.folds import Folds, leave_site_out, make_folds
from ..data.harmonise import harmonise
from ..trainer.arguments import FinetuneArguments, PretrainArguments
from ..trainer.checkpoints import load_processor
from ..trainer.vocabulary import pretraining_variables
from .arguments import EvaluateArguments, read_stages
from .confounds import confound_columns
from .features import StoredLogFC
from .tasks import Task, make_task, pretrained_tasks


TESTED, JOINS = "tested", "joins"


@dataclass(frozen=True)
class Recipe:
    """What every fold trains and scores.

    Args:
        tasks (`tuple[Task, ...]`): what is predicted.
        pretraining (`PretrainArguments`, *optional*): stage one of every fold.
        tunings (`tuple[FinetuneArguments, ...]`): stage two, one per task; without any, the pretrained variables are
            scored.
        arguments (`EvaluateArguments`): all other settings.
    """

    tasks: tuple[Task, ...]
    pretraining: PretrainArguments | None
    tunings: tuple[FinetuneArguments, ...]
    arguments: EvaluateArguments

    @property
    def is_one_tuning(self) -> bool:
        """Whether there is a single task with a fine-tuning of its own, whose files need no name."""
        return len(self.tunings) == 1

    def tuning_of(self, task: Task) -> FinetuneArguments | None:
        """The fine-tuning of a task."""
        return next((tuning for tuning in self.tunings if tuning.task == task.name), None)

    def stages(self) -> dict[str, Any]:
        """Settings of both stages, as files keep them; those of several fine-tunings by task."""
        found = {"pretraining": None if self.pretraining is None else asdict(self.pretraining), "fine-tuning": None}
        if len(self.tunings) > 1:
            del found["fine-tuning"]
        return found | {
            "fine-tuning" if self.is_one_tuning else f"fine-tuning, {tuning.task}": asdict(tuning)
            for tuning in self.tunings
        }

    @property
    def seed(self) -> int:
        """Training seed of the last stage."""
        return self.last_stage.seed

    @property
    def last_stage(self) -> PretrainArguments | FinetuneArguments:
        """The stage whose model is scored; [`make_design`] sees to it that there is one."""
        return cast(PretrainArguments | FinetuneArguments, self.tunings[0] if self.tunings else self.pretraining)


class Parts(NamedTuple):
    """The scans of a fold, or of an external test: no tested subject has a scan among the others, in whatever cohort.

    Args:
        pretraining (`Cohort`): what the pretraining may see, of all cohorts.
        training (`Cohort`): those of the tested cohort: for fine-tuning and the baselines.
        test (`Cohort`): what is predicted.
        log_fc (`StoredLogFC`, *optional*): log FC of all scans, by their number, where it is the same in every fold.
    """

    pretraining: Cohort
    training: Cohort
    test: Cohort
    log_fc: StoredLogFC | None = None


@dataclass(frozen=True)
class Design:
    """A recipe and the data on which it is evaluated.

    Args:
        recipe (`Recipe`): what every fold does.
        cohort (`Cohort`): scans of all cohorts; whoever is one subject has one id.
        part (`np.ndarray` of shape `(scans,)`): of every scan "tested" (of the cohort that is split), "joins" (it only
            joins the pretraining) or the folder of its external data set.
        log_fc (`StoredLogFC`, *optional*): log FC of all scans, where it is the same in every fold.
    """

    recipe: Recipe
    cohort: Cohort
    part: np.ndarray
    log_fc: StoredLogFC | None = None

    @property
    def tested(self) -> Cohort:
        """The cohort that is split."""
        return self.cohort.select(self.part == TESTED)

    @property
    def num_joining(self) -> int:
        """Scans of other cohorts that join the pretraining."""
        return int((self.part == JOINS).sum())

    def external(self, folder: str) -> Cohort:
        """The scans of an external data set."""
        return self.cohort.select(self.part == folder)

    def fold(self, folds: Folds, fold: int) -> Parts:
        """The scans of a fold."""
        return self._parts(folds.tests(self.cohort.subjects, fold), TESTED)

    def external_test(self, folder: str) -> Parts:
        """The scans of an external test: all others train, except those of its subjects."""
        return self._parts(self.cohort.subjects.isin(self.external(folder).subjects).to_numpy(), folder)

    def _parts(self, is_test: np.ndarray, tested_part: str) -> Parts:
        may_train = ~is_test & np.isin(self.part, (TESTED, JOINS))
        own = may_train & (self.part == TESTED)
        cohort, column = self.cohort, self.recipe.arguments.harmonise
        if column is not None:
            cohort = harmonise(cohort, cohort.select(may_train), column)
        test = cohort.select(is_test & (self.part == tested_part))
        return Parts(cohort.select(may_train), cohort.select(own), test, self.log_fc)


def draw_folds(design: Design, output: Path) -> list[Folds]:
    """The folds of every repeat: those in the output folder, a split file's, or new ones.

    Args:
        design (`Design`): the data and the settings.
        output (`Path`): the evaluation's folder.

    Raises:
        ValueError: folds that cannot be made, or in which a class would be absent from the training subjects.
    """
    tested, arguments, tasks = design.tested, design.recipe.arguments, design.recipe.tasks
    every = []
    for repeat, path in enumerate(_split_files(output, arguments.repeats)):
        if path.is_file():
            folds = Folds.load(path)
        elif arguments.splits is not None:
            folds = Folds.load(arguments.splits)
        elif arguments.split == "leave_site_out":
            folds = leave_site_out(tested.table, arguments.site_column)
        else:
            column = arguments.stratify or next((task.name for task in tasks if task.is_classification), None)
            folds = make_folds(tested.table, arguments.n_folds, arguments.seed + repeat, column)
        for task in tasks:
            _check_folds(tested, task, folds, arguments)
        every.append(folds.of_cohort(tested))
    return every


def save_folds(folds: Sequence[Folds], output: Path) -> None:
    """Write the folds of every repeat into the output folder."""
    for each, path in zip(folds, _split_files(output, len(folds)), strict=True):
        each.save(path)


def _split_files(output: Path, repeats: int) -> list[Path]:
    names = [f"splits_{repeat}.json" for repeat in range(repeats)] if repeats > 1 else ["splits.json"]
    return [output / name for name in names]


def _check_folds(tested: Cohort, task: Task, folds: Folds, arguments: EvaluateArguments) -> None:
    """Raise `ValueError` when the training subjects of a fold lack a class, or nobody is tested at all."""
    values, subjects = task.values(tested.table), tested.subjects
    if task.is_classification:
        counts = [subjects[values == index].nunique() for index in range(len(task.labels))]
        alone = [label for label, count in zip(task.labels, counts, strict=True) if count == 1]
        if alone:
            raise ValueError(
                f"The class {alone[0]!r} of {task.name!r} has one subject, who cannot be trained on and tested: leave "
                "the class out (labels of the fine-tuning settings names those to keep), or name other tasks."
            )
    num_tested = 0
    for fold in range(len(folds.test_subjects)):
        is_test = folds.tests(subjects, fold)
        test, train = (values[part & ~np.isnan(values)] for part in (is_test, ~is_test))
        num_tested += len(test)
        absent = set(range(len(task.labels))) - set(train.astype(int)) if len(test) else set()
        if absent or not len(train):
            names = ", ".join(task.labels[index] for index in sorted(absent)) or "any value"
            advice = "use other folds"
            if arguments.split == "leave_site_out":
                advice = f"{arguments.site_column!r} all but tells it, so sites cannot be left out; split by subject"
            raise ValueError(f"No training subject of fold {fold} has {names} of {task.name!r}: {advice}.")
    if not num_tested:
        raise ValueError(f"No test subject has a value of {task.name!r}: there is nothing to score.")


def make_design(arguments: EvaluateArguments) -> Design:
    """Read the recipe's files and the data, and settle what is predicted.

    Raises:
        ValueError: neither stage has settings, or the data do not fit them.
    """
    tunings, pretraining = read_stages(arguments)
    if PartialState().num_processes > 1:
        raise ValueError("training.evaluate runs in one process: start it with python, not accelerate launch.")
    cohort = load_cohort(arguments.data)
    if pretraining is not None:
        cohort = cohort if pretraining.atlas is None else cohort.with_atlas(pretraining.atlas)
    else:
        needed = [tuning.checkpoint for tuning in tunings if tuning.checkpoint or tuning.head != "ridge"]
        for checkpoint in dict.fromkeys(needed):  # the ridge head needs none
            cohort = for_checkpoint(load_processor(checkpoint), cohort)
    if arguments.harmonise is not None:
        cohort.require_column(arguments.harmonise)
    if arguments.splits is not None:
        cohort = Folds.load(arguments.splits).join(cohort)
    if arguments.same_person is not None:
        cohort = join_subjects(cohort, arguments.same_person)
    tunings, pretraining = _with_positive(arguments.positive, tunings, pretraining)
    recipe = Recipe(_tasks(cohort, arguments, tunings, pretraining), pretraining, tunings, arguments)
    parts = {TESTED: len(cohort)}
    if arguments.train_data or arguments.external:
        cohort, sizes = pool(cohort, arguments.data, [*arguments.train_data, *arguments.external])
        others = len(arguments.train_data) + 1
        parts |= {JOINS: sum(sizes[1:others])} | dict(zip(arguments.external, sizes[others:], strict=True))
    return Design(recipe, cohort, np.repeat(np.array([*parts], dtype=object), [*parts.values()]))


def _tasks(
    cohort: Cohort,
    arguments: EvaluateArguments,
    tunings: Sequence[FinetuneArguments],
    pretraining: PretrainArguments | None,
) -> tuple[Task, ...]:
    """What is predicted: the downstream tasks, or the pretrained variables."""
    tasks = tuple(make_task(cohort, tuning, _pretrained_variable(cohort, tuning, pretraining)) for tuning in tunings)
    if not tasks and pretraining is not None:
        tasks = pretrained_tasks(cohort, pretraining, arguments.tasks)
    if "confounds" not in arguments.baselines:
        return tasks
    known = (cohort.table, arguments.site_column, arguments.confounds)
    return tuple(replace(task, confounds=tuple(confound_columns(task.name, *known))) for task in tasks)


def _with_positive(
    entries: Sequence[str], tunings: Sequence[FinetuneArguments], pretraining: PretrainArguments | None
) -> tuple[tuple[FinetuneArguments, ...], PretrainArguments | None]:
    """The files' settings with the positive labels of the command line: a bare label is that of the only task."""
    by_task = {tuning.task: tuning for tuning in tunings}
    for entry in entries:
        name, sign, label = entry.partition("=")
        task = name if sign else next(iter(by_task), None) if len(by_task) == 1 else None
        if task in by_task:
            by_task[task] = replace(by_task[task], positive=label if sign else entry)
        elif pretraining is not None:
            others = [other for other in pretraining.positive if other.partition("=")[0] != name]
            pretraining = replace(pretraining, positive=[*others, entry])
        elif len(by_task) > 1:
            raise ValueError(
                f"positive is {entry!r}, and the tasks are {', '.join(by_task)}: give VARIABLE=LABEL of one of them."
            )
        elif by_task:
            raise ValueError(
                f"positive is {entry!r}, but the task is {next(iter(by_task))!r}: give one of its labels."
            )
    return tuple(by_task.values()), pretraining


def _pretrained_variable(
    cohort: Cohort, tuning: FinetuneArguments, pretraining: PretrainArguments | None
) -> BEIVariable | None:
    """The downstream variable as the checkpoint knows it, or will know it; `None` if it is a new one."""
    if pretraining is None and not tuning.checkpoint:
        return None
    if pretraining is None:
        known = load_processor(tuning.checkpoint).tokenizer.variables
    else:
        known = pretraining_variables(cohort, pretraining, [tuning.task])
    return next((variable for variable in known if variable.name == tuning.task), None)
