"""Does a converted checkpoint compute what was recorded? `python -m conversion.verify_parity DIR --reference DIR`."""

from training.command_line.cli import command, hide_bars_of_files

from .arguments import VerifyArguments


@command(VerifyArguments, "checkpoint")
def main(arguments: VerifyArguments) -> None:
    """Command line; exit code 1 when something differs."""
    from .parity import measure, table_text

    hide_bars_of_files()
    parity = measure(arguments.checkpoint, arguments.reference, arguments.tolerance)
    print(table_text(parity))
    if not parity["passed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
