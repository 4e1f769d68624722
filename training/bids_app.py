"""As a BIDS-App: `python -m training.bids_app INPUT OUTPUT participant|group`, what the containers run.

`participant` makes the data set OUTPUT/data of the derivatives in INPUT; `group` writes the report OUTPUT/report.
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .command_line.cli import ending_in_words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(f"{message[:1].upper()}{message[1:]}: give INPUT OUTPUT participant|group. See --help.")


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lcm-bids-app",
        description="Derivatives of fMRIPrep or XCP-D to FC of every scan (participant), and to a report (group).",
        epilog="Every other flag is one of training.prepare (participant) or of training.report (group). Divide the "
        "participant level over jobs with --shard 1/N ... N/N, then run it once more with --merge_shards N.",
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", metavar="INPUT", help="Folder of derivatives with sub-* folders.")
    parser.add_argument("output_dir", metavar="OUTPUT", help="Folder for the data set and the report.")
    parser.add_argument("analysis_level", metavar="participant|group", choices=("participant", "group"))
    parser.add_argument(
        "--participant_label",
        "--participant-label",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="Only these participants, with or without sub-.",
    )
    parser.add_argument("--version", action="version", version=version("large-connectome-model"))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Command line; ends as training.prepare or training.report ends."""
    with ending_in_words():
        _start(argv)


def _start(argv: list[str] | None) -> None:
    given, flags = _make_parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    source, data = Path(given.bids_dir), Path(given.output_dir) / "data"
    if not source.is_dir():
        raise FileNotFoundError(f"There is no folder {source}. In a container, bind it: --bind /path/to/derivatives.")
    if given.analysis_level == "participant":
        from .prepare import main as prepare

        chosen = [f"sub={label.removeprefix('sub-')}" for label in given.participant_label]
        selection = ["--select", *chosen] if chosen else []
        prepare(["--bids", str(source), "--output", str(data), *selection, *flags])
        return
    if given.participant_label:
        raise ValueError("participant_label belongs to the participant level: the group is whom that has prepared.")
    if not data.is_dir():
        raise FileNotFoundError(f"There is no {data}: run the participant level first, with the same OUTPUT.")
    from .report import main as report

    report(["--input", str(data), "--output", str(data.with_name("report")), *flags])


if __name__ == "__main__":
    main()
