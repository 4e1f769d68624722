"""Stage one: `python -m training.pretrain --config FILE.yaml` (or `accelerate launch -m training.pretrain ...`)."""

from functools import partial
from pathlib import Path

from accelerate import PartialState

from .cli import command_line, parse_arguments
from .data.cohort import load_cohort
from .trainer.arguments import PretrainArguments
from .trainer.checkpoints import save_checkpoint
from .trainer.pretraining import pretrain
from .trainer.runs import output_folder, record_of, training_scans


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    arguments = parse_arguments(PretrainArguments, argv)
    with output_folder(arguments) as folder:
        _run(arguments, folder)


def _run(arguments: PretrainArguments, folder: Path) -> None:
    cohort = training_scans(load_cohort(arguments.data), arguments)
    is_first = PartialState().is_main_process
    model, processor, history = pretrain(
        cohort, arguments, folder / "run", announce=partial(print, flush=True) if is_first else None
    )
    if is_first:
        save_checkpoint(folder / "checkpoint", model, processor, arguments, record_of(cohort, history))
        print(f"Pretrained checkpoint written to {folder / 'checkpoint'}")


if __name__ == "__main__":
    main()
