"""Predictions as a table: `python -m training.predict --checkpoint DIR --data DIR --output table.tsv`."""

from dataclasses import dataclass
from pathlib import Path

from .command_line.cli import command, hide_bars_of_files, setting
from .data.dataset_folder import require_dataset
from .storage.files import claim
from .storage.manifest import seal_file


@dataclass
class PredictArguments:
    """Predict with a checkpoint and write one row per scan."""

    checkpoint: str = setting(
        "", "Checkpoint or adapter: folder or Hub repository.", example="runs/finetuned/checkpoint", required=True
    )
    data: str = setting("", "Folder made by training.prepare.", example="runs/dataset", required=True)
    output: str = setting("", "Table to write (.tsv).", example="predictions.tsv", required=True)
    adapter: str | None = setting(None, "Adapter of this checkpoint: folder or Hub repository.")
    splits: str | None = setting(None, "Split file; with --fold, only that fold's test subjects are predicted.")
    fold: int | None = setting(None, "Fold of the split file.")
    batch_size: int = setting(32, "Scans per forward pass.")

    def __post_init__(self) -> None:
        """Refuse settings out of range, before any data are read."""
        if (self.splits is None) != (self.fold is None):
            raise ValueError("Give both splits (a split file) and fold, or neither to predict every subject.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")


@command(PredictArguments)
def main(arguments: PredictArguments) -> None:
    """Command line."""
    if Path(arguments.output).is_dir():
        raise ValueError(f"{arguments.output} is a folder; the output is one table: give a file name, such as p.tsv.")
    require_dataset(arguments.data)
    with claim(arguments.output) as output:
        _predict(arguments, output)


def _predict(arguments: PredictArguments, output: Path) -> None:
    from modeling_lcm.sites_lcm import SITE_UNKNOWN

    from .data.cohort import load_cohort
    from .data.folds import Folds
    from .reporting.plain import write_table
    from .trainer.limits import summarise_limits
    from .trainer.prediction import predict_table

    hide_bars_of_files()
    cohort = load_cohort(arguments.data)
    if arguments.splits is not None and arguments.fold is not None:
        cohort = Folds.load(arguments.splits).split(cohort, arguments.fold)[1]
    table, variables = predict_table(arguments.checkpoint, cohort, arguments.batch_size, arguments.adapter)
    write_table(output, table, decimals=4)
    seal_file(output)
    print(f"{len(table)} predictions written to {output}")
    for line in summarise_limits(table):
        print(line)
    if "site_mean" in table:
        alone = int(table["site_mean"].str.startswith(SITE_UNKNOWN).sum())
        print(f"Compared with the mean of their site: {len(table) - alone} scans; see column site_mean")
        if alone:
            print(f"{alone} scans have no recorded site: they are compared with the training mean")
    positive = [f"{variable.name}={variable.positive_label}" for variable in variables if variable.positive_label]
    if positive:
        print(f"Positive of two labels: {', '.join(positive)}")


if __name__ == "__main__":
    main()
