"""Which regions a BEI token reads, and what that has to do with the label: `python -m training.explain`.

Cross-attention per scan is drawn together in three ways, averaged per class, tested against shuffled labels, and
compared between the models of an evaluation's folds (or halves of the people): a map that they do not share is called
unstable. Attention says where a token looks, not what the prediction depends on.
"""

from pathlib import Path

from .cli import command_line, parse_arguments
from .explanation.arguments import ExplainArguments
from .explanation.explain import explain


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    arguments = parse_arguments(ExplainArguments, argv)
    for entry in explain(arguments):
        print(entry.sentence(arguments.method))
    print(f"Page: {Path(arguments.output) / 'explanation.html'}")


if __name__ == "__main__":
    main()
