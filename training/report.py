"""From a folder of scans to one page: `python -m training.report INPUT OUTPUT --task Group`.

Recognises what it is given, prepares it, evaluates honestly beside simple models, fine-tunes on all subjects, and
explains. Interrupted, the same command goes on.
"""

from functools import partial

from .command_line.cli import command, hide_bars_of_files
from .first_report.arguments import ReportArguments


@command(ReportArguments, "input", "output")
def main(arguments: ReportArguments) -> None:
    """Command line."""
    say = partial(print, flush=True)
    if arguments.dry_run:
        from .first_report.plan import make_plan

        say("\n".join(make_plan(arguments).lines()))
        return
    from .first_report.run import make_report

    hide_bars_of_files()
    try:
        say(f"Page: {make_report(arguments, say)}")
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)("what is finished is kept; the same command goes on.") from interrupt


if __name__ == "__main__":
    main()
