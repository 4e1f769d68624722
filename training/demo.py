"""The whole job on 168 real connectomes, in minutes: `python -m training.demo --output runs/demo`."""

from dataclasses import dataclass

from .command_line.cli import command, hide_bars_of_files, setting
from .storage.files import require_new


@dataclass
class DemoArguments:
    """Run the demo on the connectomes that come with the repository."""

    output: str = setting("runs/demo", "Folder for everything the demo makes.")


@command(DemoArguments)
def main(arguments: DemoArguments) -> None:
    """Command line."""
    output = require_new(arguments.output)
    from .first_report.demonstration import demo
    from .reporting.tables import results_table_text

    hide_bars_of_files()
    for results in demo(output).tasks.values():
        print(results_table_text(results))
    print(f"Report: {output / 'report.html'}   metrics: {output / 'metrics.json'}   model: {output / 'checkpoint'}")


if __name__ == "__main__":
    main()
