"""Stage two: `python -m training.finetune --config FILE.yaml` (or `accelerate launch -m training.finetune ...`)."""

from functools import partial
from pathlib import Path

from accelerate import PartialState

from .cli import command_line, parse_arguments
from .data.cohort import load_cohort
from .trainer.arguments import FinetuneArguments
from .trainer.checkpoints import save_checkpoint
from .trainer.finetuning import finetune
from .trainer.runs import output_folder, record_of, training_scans


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    arguments = parse_arguments(FinetuneArguments, argv)
    with output_folder(arguments) as folder:
        _run(arguments, folder)


def _run(arguments: FinetuneArguments, folder: Path) -> None:
    cohort = training_scans(load_cohort(arguments.data), arguments)
    is_first = PartialState().is_main_process
    model, processor, history = finetune(
        cohort, arguments, folder / "run", announce=partial(print, flush=True) if is_first else None
    )
    if is_first:
        record = record_of(cohort, history, arguments.checkpoint)
        save_checkpoint(folder / "checkpoint", model, processor, arguments, record)
        print(f"Fine-tuned checkpoint written to {folder / 'checkpoint'}")


if __name__ == "__main__":
    main()
