"""Publish a checkpoint, adapter or data set: `python -m hub_cards.publish DIR --repo-id ORG/NAME ...`.

Without `--no-dry-run` nothing leaves this machine: the card and the list of files are shown.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.command_line.cli import command, hide_bars_of_files, setting
from training.data.dataset_folder import FC_DEFINITION
from training.storage.files import write_text

from .facts import load_facts


if TYPE_CHECKING:  # it imports torch
    from .bundle import Bundle


@dataclass(frozen=True)
class PublishArguments:
    """Publish a checkpoint, an adapter or a prepared data set with a complete card."""

    folder: str = setting(
        "",
        "Checkpoint folder, adapter folder, or data set made by training.prepare.",
        example="runs/finetuned/checkpoint",
        required=True,
    )
    repo_id: str = setting("", "ORG/NAME on the Hub.", example="my-lab/lcm-autism", required=True)
    card: str | None = setting(
        None,
        "YAML file with the card's facts: a filled-in copy of card_template.yaml.",
        group="card",
        example="card.yaml",
    )
    entry: str | None = setting(None, "Instead of --card: an entry of hub_cards/checkpoints.yaml.")
    license: str | None = setting(None, "Licence of the weights; overrides the card's facts.", example="apache-2.0")
    license_name: str | None = setting(None, "Its name, with --license other.")
    metrics: str | None = setting(None, "metrics.json of training.evaluate; default: the one in the folder.")
    base_model: str | None = setting(
        None, "ORG/NAME of the published base model (adapters only).", group="repository", example="my-lab/lcm"
    )
    base_revision: str = setting("main", "Its tag or commit.")
    subject_hashes: bool = setting(
        True, "Publish salted hashes of the training subjects' ids, by which others can avoid to test on them."
    )
    private: bool = setting(False, "Make a new repository private.")
    tag: str | None = setting(None, "Tag for this version; never moved once it exists.", example="v1")
    update: bool = setting(False, "Replace the content of an existing repository.")
    write_card: bool = setting(False, "Also write the card into the folder, as README.md.")
    dry_run: bool = setting(True, "Only show what would be uploaded; --no-dry-run uploads.")


def kind_of(folder: Path) -> str:
    """What a folder holds: "model", "adapter" or "dataset".

    Raises:
        FileNotFoundError: none of them.
    """
    for name, kind in (("adapter_config.json", "adapter"), (FC_DEFINITION, "dataset"), ("config.json", "model")):
        if (folder / name).is_file():
            return kind
    raise FileNotFoundError(
        f"{folder} is no checkpoint (config.json), no adapter (adapter_config.json) and no prepared data set "
        f"({FC_DEFINITION}), or does not exist."
    )


@contextmanager
def make_bundle(folder: Path, facts: dict[str, Any], options: PublishArguments) -> "Iterator[Bundle]":
    """Validate a folder and put together what would be published; exists for the duration of the `with`.

    Raises:
        ValueError: the folder does not load or run, or the card is not complete.
    """
    from modeling_lcm.loading_lcm import foreign_errors_named

    from .bundle import adapter_bundle, dataset_bundle, model_bundle, with_checksums
    from .validate import check_adapter, check_card, check_dataset, check_model

    kind = kind_of(folder)
    if facts["kind"] != kind:
        raise ValueError(f"{folder} is a {kind}, but the card's facts are for a {facts['kind']}.")
    if (kind == "adapter") != (options.base_model is not None):
        raise ValueError(
            "An adapter, and only an adapter, needs --base-model ORG/NAME: the published repository it belongs to."
        )
    revision = options.tag or "main"
    where, records = (facts, options.repo_id, revision), (options.metrics, options.subject_hashes)
    with ExitStack() as stack:
        with foreign_errors_named(f"{folder} cannot be published, a file in it is damaged"):
            if kind == "dataset":
                check_dataset(folder)
                bundle = stack.enter_context(dataset_bundle(folder, *where))
            elif kind == "adapter":
                check_adapter(folder)
                bundle = adapter_bundle(folder, *where, str(options.base_model), options.base_revision, *records)
            else:
                check_model(folder, facts.get("size"))
                bundle = model_bundle(folder, *where, *records)
            check_card(bundle)
        yield with_checksums(bundle)


def describe(bundle: "Bundle", options: PublishArguments) -> str:
    """What an upload would do, for the terminal."""
    from huggingface_hub import constants

    lines = [f"{bundle.kind} -> {constants.ENDPOINT}/{options.repo_id}", ""]
    sizes = {
        path: len(content) if isinstance(content, bytes) else content.stat().st_size
        for path, content in sorted(bundle.files.items())
    }
    lines += [f"{size:>15,}  {path}" for path, size in sizes.items()]
    lines += [f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files"]
    if bundle.left_out:
        lines.append(f"not published: {', '.join(bundle.left_out)}")
    visibility = "private" if options.private else "public"
    lines.append(f"repository: {visibility} if it is new; tag: {options.tag or 'none'}")
    return "\n".join(lines)


@command(PublishArguments, "folder")
def main(options: PublishArguments) -> None:
    """Command line."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        for name in filter(None, (options.repo_id, options.base_model)):
            validate_repo_id(name)
            if "/" not in name:
                raise HFValidationError(f"{name!r} has no owner: write ORG/NAME.")
    except HFValidationError as error:
        raise ValueError(f"Not a repository's name: {error}") from error
    folder = Path(options.folder)
    kind_of(folder)
    facts = load_facts(options.entry, options.card, license=options.license, license_name=options.license_name)
    from .upload import publish

    hide_bars_of_files()
    with make_bundle(folder, facts, options) as bundle:
        if options.write_card:
            write_text(folder / "README.md", bundle.readme)
        if options.dry_run:
            print(f"{bundle.readme}\n{describe(bundle, options)}")
            print("Dry run: nothing was uploaded. Add --no-dry-run to upload.")
            return
        commit = publish(bundle, options.repo_id, options.private, options.tag, options.update)
        print(describe(bundle, options))
        print(f"Published as commit {commit}; downloaded again, and every file and tensor is the same.")


if __name__ == "__main__":
    main()
