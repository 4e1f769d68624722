"""Several prepared cohorts -> one data set: `python -m training.merge --inputs A B --output C`."""

import json

from .command_line.cli import command
from .data.dataset_folder import QUALITY, require_dataset
from .preparation.arguments import MergeArguments
from .storage.files import require_new


@command(MergeArguments)
def main(arguments: MergeArguments) -> None:
    """Command line."""
    require_new(arguments.output)
    for part in arguments.inputs:
        require_dataset(part)
    from .preparation.merging import merge

    for folder in merge(arguments):
        quality = json.loads((folder / QUALITY).read_text(encoding="utf-8"))
        print(f"{quality['scans']} scans of {quality['subjects']} subjects written to {folder}")
        print("\n".join(quality["remarks"]))


if __name__ == "__main__":
    main()
