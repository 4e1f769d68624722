"""Several prepared cohorts -> one data set: `python -m training.merge --inputs A B --output C`."""

import json

from .cli import command_line, parse_arguments
from .data.cohort import QUALITY
from .preparation.arguments import MergeArguments
from .preparation.merging import merge


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    for folder in merge(parse_arguments(MergeArguments, argv)):
        quality = json.loads((folder / QUALITY).read_text(encoding="utf-8"))
        print(f"{quality['scans']} scans of {quality['subjects']} people written to {folder}")
        print("\n".join(quality["remarks"]))


if __name__ == "__main__":
    main()
