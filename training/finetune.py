"""Stage two: `python -m training.finetune --config FILE.yaml` (or `accelerate launch -m training.finetune ...`)."""

from functools import partial

from .command_line.cli import command, hide_bars_of_files
from .data.dataset_folder import require_dataset
from .storage.files import require_new
from .trainer.arguments import FinetuneArguments


@command(FinetuneArguments)
def main(arguments: FinetuneArguments) -> None:
    """Command line."""
    if arguments.head == "decoder" and not arguments.checkpoint:
        raise ValueError("No checkpoint was given: add --checkpoint FOLDER. See --help.")
    require_new(arguments.output, arguments.resume)
    require_dataset(arguments.data)
    from accelerate import PartialState

    from .data.cohort import load_cohort
    from .trainer.checkpoints import save_checkpoint
    from .trainer.finetuning import finetune
    from .trainer.runs import output_folder, record_of, training_scans

    hide_bars_of_files()
    with output_folder(arguments) as folder:
        cohort = training_scans(load_cohort(arguments.data), arguments)
        is_first = PartialState().is_main_process
        announce = partial(print, flush=True) if is_first else None
        model, processor, history = finetune(cohort, arguments, folder / "run", announce=announce)
        if is_first:
            record = record_of(cohort, history, arguments.checkpoint)
            save_checkpoint(folder / "checkpoint", model, processor, arguments, record)
            print(f"Fine-tuned checkpoint written to {folder / 'checkpoint'}")


if __name__ == "__main__":
    main()
