"""What fits where: memory of a training or a prediction, and the settings that make it fit.

python -m training.plan --size 1.2b --gpus 1x24GB
python -m training.plan --size 1.2b --mode lora --memory 8
"""

from .command_line.cli import command
from .trainer.arguments import PlanArguments


@command(PlanArguments)
def main(arguments: PlanArguments) -> None:
    """Command line."""
    from .trainer.memory import plan

    print("\n".join(plan(arguments)))


if __name__ == "__main__":
    main()
