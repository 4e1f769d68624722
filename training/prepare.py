"""Tables and scans -> one data set folder: `python -m training.prepare --config FILE.yaml`."""

import sys

from .command_line.cli import command
from .preparation.arguments import PrepareArguments
from .storage.files import require_new


@command(PrepareArguments)
def main(arguments: PrepareArguments) -> None:
    """Command line; exit code 1 when scans or values were dropped without a rule, or a guess is to be confirmed."""
    require_new(arguments.output)
    from .preparation.assemble import summary_of
    from .preparation.build import prepare
    from .preparation.recipes import load_recipe

    recipe = load_recipe(arguments.recipe)
    if recipe.name:
        print(f"{recipe.title}\nTerms of use: {recipe.terms}\n{recipe.url}\n")
    folder = prepare(arguments)
    if arguments.shard is not None:
        print(f"Shard {arguments.shard} is finished: {folder}. When all are, repeat with --merge_shards COUNT.")
        return
    text, dropped = summary_of(folder)
    print(text)
    if dropped:
        sys.exit(1)


if __name__ == "__main__":
    main()
