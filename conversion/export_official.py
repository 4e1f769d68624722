"""A pair of pickles for the research code: `python -m conversion.export_official CHECKPOINT_DIR --output DIR`."""

import json

from training.command_line.cli import command, hide_bars_of_files
from training.storage.files import require_new

from .arguments import ExportArguments


@command(ExportArguments, "checkpoint")
def main(arguments: ExportArguments) -> None:
    """Command line."""
    require_new(arguments.output)
    from .exporting import export

    hide_bars_of_files()
    run = export(arguments.checkpoint, arguments.output, arguments.dataset, arguments.fold)
    report = json.loads((run.parent / "export_report.json").read_text(encoding="utf-8"))
    for note in report["notes"]:
        print(f"note: {note}")
    print(f"Pair written to {run}")


if __name__ == "__main__":
    main()
