"""The studies behind docs/results.md: `python -m training.studies --studies lemon` runs one and rewrites its table.

A file in `training/configs/studies/` is a family of studies: settings of `pretrain`, `finetune` and `evaluate`, and in
`variants` what each study has of its own, by name; two lists of these are crossed. What a study found is kept in
`docs/results/NAME.json`; the tables of docs/results.md are made of these, between `<!-- NAME -->` marks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

from .command_line.cli import command, did_you_mean, hide_bars_of_files, load_yaml, parse_arguments, setting
from .evaluation.arguments import EvaluateArguments


REPOSITORY = Path(__file__).resolve().parent.parent
FAMILIES = REPOSITORY / "training" / "configs" / "studies"
RECORDS = REPOSITORY / "docs" / "results"
PAGE = REPOSITORY / "docs" / "results.md"
OUTPUT = Path("runs", "studies")


@dataclass
class StudiesArguments:
    """Run studies, finish those that were stopped, and write the tables of docs/results.md."""

    studies: list[str] = setting([], "Studies to run; without any, the tables are made anew.", example="abide lemon")
    workers: int = setting(0, "Processes that share the folds; 0: as many as CPUs may be used.")


@command(StudiesArguments)
def main(arguments: StudiesArguments) -> None:
    """Command line."""
    known = studies()
    for name in arguments.studies:
        if name not in known:
            names = ", ".join(known)
            raise ValueError(f"There is no study {name!r}.{did_you_mean(name, known)} There are {names}.")
    hide_bars_of_files()
    for name in arguments.studies:
        run(name, known[name], arguments.workers)
    write_pages()


def studies() -> dict[str, dict[str, Any]]:
    """Settings of every study by name: `evaluate`, `pretrain` and `finetune`, and `start`, a pretraining before it."""
    found = {}
    for path in sorted(FAMILIES.glob("*.yaml")):
        family = load_yaml(path)
        variants = family.pop("variants", {path.stem: {}})
        if isinstance(variants, list):
            variants = _crossed(path.stem, variants)
        for name, own in variants.items():
            stages = _over(family, own)
            stages["evaluate"] = {"output": str(OUTPUT / name)} | stages["evaluate"]
            found[name] = stages
    return found


def _over(settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by stage, with others over them."""
    return {stage: settings.get(stage, {}) | own.get(stage, {}) for stage in [*settings, *own]}


def _crossed(family: str, factors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every combination of one variant of each factor: `FAMILY_FIRST_SECOND`, with both titles."""
    found = {}
    for chosen in product(*(factor.items() for factor in factors)):
        together = reduce(_over, (own for _, own in chosen))
        title = ", ".join(own["evaluate"]["title"] for _, own in chosen)
        found["_".join([family, *(name for name, _ in chosen)])] = _over(together, {"evaluate": {"title": title}})
    return found


def settings_of(name: str, study: Mapping[str, dict[str, Any]]) -> EvaluateArguments:
    """Write the settings of a study's stages as files, which `training.evaluate` reads, and name them in its own."""
    import yaml

    from .storage.files import write_text

    settings = dict(study["evaluate"])
    for stage in ("pretrain", "finetune"):
        if stage in study:
            path = OUTPUT / "settings" / f"{name}_{stage}.yaml"
            write_text(path, yaml.safe_dump(study[stage], sort_keys=False, allow_unicode=True))
            settings[stage] = str(path)
    path = OUTPUT / "settings" / f"{name}_evaluate.yaml"
    write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    return parse_arguments(EvaluateArguments, ["--config", str(path)])


def run(name: str, study: Mapping[str, dict[str, Any]], workers: int = 0) -> None:
    """Evaluate one study, or finish one that was stopped, and keep its `metrics.json`."""
    from .evaluation.cross_validation import evaluate
    from .pretrain import main as pretrain

    start = study.get("start")
    if start is not None and not Path(start["output"], "checkpoint").is_dir():
        pretrain([f"--{key}={value}" for key, value in start.items()])
    arguments = settings_of(name, study)
    arguments.resume = Path(arguments.output).is_dir()
    arguments.workers = workers
    evaluate(arguments).save(RECORDS / f"{name}.json")


def write_pages() -> None:
    """Put the tables of all finished studies, and their summary, between their marks in docs/results.md."""
    from .reporting.results import Results
    from .reporting.studies import between_marks, summary_table, tables
    from .storage.files import write_text

    records = {path.stem: Results.load(path) for path in sorted(RECORDS.glob("*.json"))}
    summary = summary_table(records)
    text = PAGE.read_text(encoding="utf-8")
    for name, content in tables(records).items():
        text = between_marks(text, name, content)
    write_text(PAGE, between_marks(text, "summary", summary))


if __name__ == "__main__":
    main()
