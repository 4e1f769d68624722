"""Which regions a BEI token reads, and what that has to do with the label: `python -m training.explain`.

Cross-attention per scan is drawn together in three ways, averaged per class, tested against shuffled labels, and
compared between the models of an evaluation's folds (or halves of the subjects): a map that they do not share is
called unstable. Attention says where a token looks, not what the prediction depends on.
"""

from pathlib import Path

from .command_line.cli import command, hide_bars_of_files
from .data.dataset_folder import require_dataset
from .explanation.arguments import ExplainArguments
from .storage.files import require_new


@command(ExplainArguments)
def main(arguments: ExplainArguments) -> None:
    """Command line."""
    require_new(arguments.output)
    require_dataset(arguments.data)
    from .explanation.explain import explain

    hide_bars_of_files()
    for entry in explain(arguments):
        print(entry.sentence(arguments.method))
    print(f"Page: {Path(arguments.output) / 'explanation.html'}")


if __name__ == "__main__":
    main()
