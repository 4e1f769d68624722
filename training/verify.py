"""Is everything as it was written? `python -m training.verify FOLDER`.

For checkpoints, adapters, data sets, evaluations and tables of predictions, on disk or on the Hub. Every file is read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .command_line.cli import command, setting


@dataclass
class VerifyArguments:
    """Compare finished files with the checksums that were written with them."""

    folder: str = setting(
        "",
        "Checkpoint, adapter, data set, evaluation or table; or a Hub repository, ORG/NAME.",
        example="runs/finetuned/checkpoint",
        required=True,
    )
    repo_type: Literal["model", "dataset"] = setting("model", "Of a repository.")
    revision: str = setting("main", "Of a repository: tag, branch or commit.")
    renew: bool = setting(False, "Write the checksums anew, for what you have changed on purpose.")


@command(VerifyArguments, "folder")
def main(arguments: VerifyArguments) -> None:
    """Command line; exit code 2 and the files that differ, if any do."""
    from .storage.checked_files import downloaded
    from .storage.manifest import differences, read_checksums, require_intact_file, seal, seal_file

    place = Path(arguments.folder)
    if not place.exists():
        place = downloaded(arguments.folder, arguments.repo_type, arguments.revision)
    elif arguments.renew:
        seal_file(place) if place.is_file() else seal(place)
        print(f"Checksums of {place} written.")
        return
    if place.is_file():
        require_intact_file(place)
        print(f"{place}: as it was written.")
        return
    files = read_checksums(place)
    if files is None:
        raise ValueError(f"{place} has no checksums: an earlier version or another tool wrote it. See --renew.")
    changed = differences(place, again=True)
    if changed:
        more = f"; and {len(changed) - 5} more" if changed[5:] else ""
        raise ValueError(f"{place}: {'; '.join(changed[:5])}{more}.")
    print(f"{place}: {len(files)} files, all as they were written.")


if __name__ == "__main__":
    main()
