"""Predictions as a table: `python -m training.predict --checkpoint DIR --data DIR --output table.tsv`."""

from dataclasses import dataclass
from pathlib import Path

from .cli import command_line, parse_arguments, setting
from .data.cohort import load_cohort
from .data.folds import Folds
from .files import claim, write_text
from .manifest import seal_file
from .trainer.limits import summarise_limits
from .trainer.prediction import predict_table


@dataclass
class PredictArguments:
    """Predict with a checkpoint and write one row per scan."""

    checkpoint: str = setting("", "Checkpoint or adapter: folder or Hub repository.")
    adapter: str | None = setting(None, "Adapter of this checkpoint: folder or Hub repository.")
    data: str = setting("", "Folder made by training.prepare.")
    output: str = setting("", "Table to write (.tsv).")
    splits: str | None = setting(None, "Split file; with --fold, only that fold's test subjects are predicted.")
    fold: int | None = setting(None, "Fold of the split file.")
    batch_size: int = setting(32, "Scans per forward pass.")


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    arguments = parse_arguments(PredictArguments, argv)
    with claim(arguments.output) as output:
        _predict(arguments, output)


def _predict(arguments: PredictArguments, output: Path) -> None:
    if output.is_dir():
        raise ValueError(f"{output} is a folder; the output is one table: give a file name such as predictions.tsv.")
    cohort = load_cohort(arguments.data)
    if (arguments.splits is None) != (arguments.fold is None):
        raise ValueError("Give both splits (a split file) and fold, or neither to predict every subject.")
    if arguments.splits is not None and arguments.fold is not None:
        cohort = Folds.load(arguments.splits).split(cohort, arguments.fold)[1]
    table, variables = predict_table(arguments.checkpoint, cohort, arguments.batch_size, arguments.adapter)
    write_text(output, table.to_csv(sep="\t", index=False, float_format="%.4f"))
    seal_file(output)
    print(f"{len(table)} predictions written to {output}")
    for line in summarise_limits(table):
        print(line)
    positive = [f"{variable.name}={variable.positive_label}" for variable in variables if variable.positive_label]
    if positive:
        print(f"Positive of two labels: {', '.join(positive)}")


if __name__ == "__main__":
    main()
