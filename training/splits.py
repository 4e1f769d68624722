"""A file of folds by subject: `python -m training.splits --data DIR --output splits.json`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .command_line.cli import command, require_choices, setting
from .data.dataset_folder import require_dataset
from .storage.files import claim


@dataclass
class SplitArguments:
    """Write a split file: which subjects every fold tests, with a checksum."""

    data: str = setting(
        "", "Folder made by training.prepare or training.merge.", example="runs/dataset", required=True
    )
    output: str = setting("", "Split file (JSON) to write.", example="runs/splits.json", required=True)
    kind: Literal["random", "leave_site_out", "official"] = setting(
        "random", '"random", "leave_site_out", or "official" (a column says the fold).', group="folds"
    )
    column: str | None = setting(
        None,
        "random: phenotype to balance; leave_site_out: site, scanner or dataset; official: the fold.",
        example="diagnosis",
    )
    n_folds: int = setting(5, "Folds of random splits.")
    seed: int = setting(0, "Seed of random splits.")
    same_person: str | None = setting(
        None, "Column with one value for the scans of one subject (two ids, twins, a family): no fold parts them."
    )

    def __post_init__(self) -> None:
        """Refuse settings that do not fit each other."""
        require_choices(self)
        if self.kind == "official" and self.column is None:
            raise ValueError("kind official needs the column that says the fold: add --column NAME.")


@command(SplitArguments)
def main(arguments: SplitArguments) -> None:
    """Command line."""
    require_dataset(arguments.data)
    with claim(arguments.output) as output:
        _split(arguments, output)


def _split(arguments: SplitArguments, output: Path) -> None:
    from .data.cohort import load_cohort
    from .data.combine import join_subjects
    from .data.folds import leave_site_out, make_folds, official_folds

    cohort = load_cohort(arguments.data)
    if arguments.same_person is not None:
        cohort = join_subjects(cohort, arguments.same_person)
    table = cohort.table
    if arguments.kind == "random":
        folds = make_folds(table, arguments.n_folds, arguments.seed, arguments.column)
    elif arguments.kind == "leave_site_out":
        folds = leave_site_out(table, arguments.column or "site")
    else:
        folds = official_folds(table, str(arguments.column))
    folds.of_cohort(cohort).save(output)
    sizes = ", ".join(str(len(subjects)) for subjects in folds.test_subjects)
    print(f"{len(folds.test_subjects)} folds ({sizes} subjects) written to {output}; checksum {folds.checksum}")


if __name__ == "__main__":
    main()
