"""Stage two: `python -m training.finetune --config FILE.yaml` (or `accelerate launch -m training.finetune ...`)."""

from accelerate import PartialState

from .arguments import FinetuneArguments, command_line, parse_arguments
from .data import load_cohort
from .files import require_new
from .runs import record_of, training_rows
from .stages import finetune, save_checkpoint


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    arguments = parse_arguments(FinetuneArguments, argv)
    folder = require_new(arguments.output, arguments.resume)
    cohort = load_cohort(arguments.data)
    rows = training_rows(cohort, arguments)
    model, processor, history = finetune(cohort, rows, arguments, folder / "run")
    if PartialState().is_main_process:
        save_checkpoint(folder / "checkpoint", model, processor, arguments, record_of(cohort, rows, history))
        print(f"Fine-tuned checkpoint written to {folder / 'checkpoint'}")


if __name__ == "__main__":
    main()
