"""Research-code checkpoint to Hub folder: `python -m conversion.convert_official RUN_DIR --output DIR`."""

from training.command_line.cli import command, hide_bars_of_files
from training.storage.files import require_new

from .arguments import ConvertArguments
from .run_files import find_run


@command(ConvertArguments, "run_dir")
def main(given: ConvertArguments) -> None:
    """Command line."""
    require_new(given.output)
    run = find_run(given.run_dir, given.fold, given.dataset, given.metric, given.head)
    from .converting import convert
    from .parity import table_text

    hide_bars_of_files()
    report = convert(run, given.output, given)
    shape = report["architecture"]
    print(
        f"{report['parameters']:,} parameters: {shape['num_layers']} layers of width {shape['hidden_size']}, "
        f"{shape['num_regions']} regions ({report['atlas']}), {shape['num_tokens']} tokens"
    )
    for note in report["notes"]:
        print(f"note: {note}")
    if report["parity"] is not None:
        print(table_text(report["parity"]))
    print(f"Checkpoint written to {given.output}")


if __name__ == "__main__":
    main()
