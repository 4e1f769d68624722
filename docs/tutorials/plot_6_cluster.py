"""
Many scans on a cluster
=======================

Preparing is divided into shards, which are jobs of an array; each goes on where it was, and one more call makes the
data set of them. Here the jobs run one after the other.
"""

# %%
# The same settings for all jobs.
import tempfile
from pathlib import Path

import training
from training.prepare import main as prepare


SHIPPED = Path(training.__file__).parent / "demo_data" / "lemon-schaefer200"
work = Path(tempfile.mkdtemp())
settings = (
    f"--participants {SHIPPED}/participants.tsv --connectivity {SHIPPED}/fc.npz --regions {SHIPPED}/rois.tsv "
    f"--atlas schaefer-200 --output {work}/data"
).split()

# %%
# Under Slurm, ``--shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT``.
for job in range(1, 4):
    prepare([*settings, "--shard", f"{job}/3"])

# %%
# When all have ended:
prepare([*settings, "--merge_shards", "3"])

# %%
# In a container the same is a BIDS-App, ``INPUT OUTPUT participant --shard 1/3``; recipes for Docker and Apptainer,
# and batch scripts, are in ``docs/cluster``. What a model needs of a node is known before it is asked for:
from training.plan import main as plan


plan(["--size", "147m", "--regions", "200"])
