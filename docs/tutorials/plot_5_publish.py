"""
Publishing a checkpoint
=======================

A model goes to the Hub with its processor, its code, its results and a card that says what it was trained on.
``hub_cards.publish`` checks all of it, and uploads nothing unless it is told to.
"""

# %%
# A checkpoint, as training leaves it.
import tempfile
from pathlib import Path

import training
from training.preparation.arguments import PrepareArguments
from training.preparation.build import prepare
from training.pretrain import main as pretrain


SHIPPED = Path(training.__file__).parent / "demo_data" / "lemon-schaefer200"
work = Path(tempfile.mkdtemp())
prepare(
    PrepareArguments(
        output=str(work / "data"),
        participants=str(SHIPPED / "participants.tsv"),
        connectivity=str(SHIPPED / "fc.npz"),
        atlas="schaefer-200",
        regions=str(SHIPPED / "rois.tsv"),
        phenotypes=["sex", "age"],
    )
)
pretrain(
    f"--data {work}/data --output {work}/run --size nano --categorical sex --continuous age --epochs 2 "
    "--progress false --checkpoint_every 0".split()
)

# %%
# The card's facts: what no file of the checkpoint can know. ``hub_cards/card_template.yaml`` explains every field.
import hub_cards


template = Path(hub_cards.__file__).parent / "card_template.yaml"
print(template.read_text()[:1500])

# %%
# The shipped data set has an entry already, so its publication can be tried. Nothing leaves this machine: without
# ``--no-dry-run`` the command ends with what would be uploaded.
from hub_cards.publish import main as publish


publish(f"{work}/data --repo-id me/lemon-schaefer200 --entry lemon-schaefer200 --tag v1".split())

# %%
# For the checkpoint:
# ``python -m hub_cards.publish run/checkpoint --repo-id me/my-lcm --card my_card.yaml --tag v1``.
# ``docs/sharing.md`` has models, adapters and private repositories.
