"""Make lcm-open again: `python -m training.open_weights --data runs/open --output hub_cards/lcm-open`."""

from .command_line.cli import command, hide_bars_of_files
from .storage.files import claim
from .trainer.open_arguments import OpenWeightsArguments


@command(OpenWeightsArguments)
def main(arguments: OpenWeightsArguments) -> None:
    """Command line."""
    with claim(arguments.output) as output:
        from .trainer.open_weights import make_open_weights

        hide_bars_of_files()
        for line in make_open_weights(arguments, output):
            print(line, flush=True)


if __name__ == "__main__":
    main()
