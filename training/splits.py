"""Splits by subject: folds, validation subjects, few-label subsets, and the file that records them."""

from dataclasses import dataclass
from pathlib import Path

from .cli import command_line, parse_arguments, setting
from .data.cohort import load_cohort
from .data.combine import join_subjects
from .data.folds import leave_site_out, make_folds, official_folds
from .files import claim


@dataclass
class SplitArguments:
    """Write a split file: which subjects every fold tests, with a checksum."""

    data: str = setting("", "Folder made by training.prepare or training.merge.")
    output: str = setting("", "Split file (JSON) to write.")
    kind: str = setting("random", '"random", "leave_site_out", or "official" (a column says the fold).')
    column: str | None = setting(
        None, "random: phenotype to balance; leave_site_out: site, scanner or dataset; official: the fold."
    )
    n_folds: int = setting(5, "Folds of random splits.")
    seed: int = setting(0, "Seed of random splits.")
    same_person: str | None = setting(
        None, "Column with one value for the scans of one subject (two ids, twins, a family): no fold parts them."
    )


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    arguments = parse_arguments(SplitArguments, argv)
    with claim(arguments.output) as output:
        _split(arguments, output)


def _split(arguments: SplitArguments, output: Path) -> None:
    cohort = load_cohort(arguments.data)
    if arguments.same_person is not None:
        cohort = join_subjects(cohort, arguments.same_person)
    table = cohort.table
    if arguments.kind == "random":
        folds = make_folds(table, arguments.n_folds, arguments.seed, arguments.column)
    elif arguments.kind == "leave_site_out":
        folds = leave_site_out(table, arguments.column or "site")
    elif arguments.kind == "official" and arguments.column is not None:
        folds = official_folds(table, arguments.column)
    else:
        raise ValueError(f"kind is random, leave_site_out, or official with --column; got {arguments.kind!r}.")
    folds.of_cohort(cohort).save(output)
    sizes = ", ".join(str(len(subjects)) for subjects in folds.test_subjects)
    print(f"{len(folds.test_subjects)} folds ({sizes} subjects) written to {output}; checksum {folds.checksum}")


if __name__ == "__main__":
    main()
