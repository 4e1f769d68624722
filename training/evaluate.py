"""Honest cross-validation of the whole recipe: `python -m training.evaluate --config FILE.yaml`.

Per fold: pretrain (and fine-tune) on the training subjects alone, predict the test subjects once, and do the same with
simple models on the same subjects. Nothing is chosen on a test fold.
"""

from .command_line.cli import command, hide_bars_of_files
from .data.dataset_folder import require_dataset
from .evaluation.arguments import EvaluateArguments, read_stages
from .storage.files import require_new


@command(EvaluateArguments)
def main(arguments: EvaluateArguments) -> None:
    """Command line."""
    require_new(arguments.output, arguments.resume or arguments.shard is not None)
    require_dataset(arguments.data)
    read_stages(arguments)
    from .evaluation.cross_validation import evaluate, evaluate_shard
    from .reporting.tables import results_table_text

    hide_bars_of_files()
    if arguments.shard is not None:
        print(evaluate_shard(arguments))
        return
    for results in evaluate(arguments).tasks.values():
        print(results.title)
        print(results_table_text(results))
        if results.difference is not None:
            print(results.difference.sentence)


if __name__ == "__main__":
    main()
