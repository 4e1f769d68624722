"""Honest cross-validation of the whole recipe: `python -m training.evaluate --config FILE.yaml`.

Per fold: pretrain (and fine-tune) on the training subjects alone, predict the test subjects once, and do the same with
simple models on the same subjects. Nothing is chosen on a test fold.
"""

from .cli import command_line, parse_arguments
from .evaluation.arguments import EvaluateArguments
from .evaluation.cross_validation import evaluate
from .reporting.tables import results_table_text


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    for results in evaluate(parse_arguments(EvaluateArguments, argv)).tasks.values():
        print(results.title)
        print(results_table_text(results))
        if results.difference is not None:
            print(results.difference.sentence)


if __name__ == "__main__":
    main()
