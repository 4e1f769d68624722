"""Stage one: `python -m training.pretrain --config FILE.yaml` (or `accelerate launch -m training.pretrain ...`)."""

from functools import partial

from .command_line.cli import command, hide_bars_of_files
from .data.dataset_folder import require_dataset
from .storage.files import require_new
from .trainer.arguments import PretrainArguments


@command(PretrainArguments)
def main(arguments: PretrainArguments) -> None:
    """Command line."""
    require_new(arguments.output, arguments.resume)
    require_dataset(arguments.data)
    from accelerate import PartialState

    from .data.cohort import load_cohort
    from .trainer.checkpoints import save_checkpoint
    from .trainer.pretraining import pretrain
    from .trainer.runs import output_folder, record_of, training_scans

    hide_bars_of_files()
    with output_folder(arguments) as folder:
        cohort = training_scans(load_cohort(arguments.data), arguments)
        is_first = PartialState().is_main_process
        announce = partial(print, flush=True) if is_first else None
        model, processor, history = pretrain(cohort, arguments, folder / "run", announce=announce)
        if is_first:
            record = record_of(cohort, history)
            save_checkpoint(folder / "checkpoint", model, processor, arguments, record)
            print(f"Pretrained checkpoint written to {folder / 'checkpoint'}")


if __name__ == "__main__":
    main()
