"""
An adapter in twenty lines, with Trainer
========================================

A checkpoint learns a new task with ``transformers.Trainer`` and a LoRA adapter. The checkpoint is made here, in a few
epochs on sex and age; yours comes from ``from_pretrained("ORG/NAME")``.
"""

# %%
# Data, and a checkpoint to start from.
import tempfile
from pathlib import Path

from training.data.cohort import load_cohort
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
        phenotypes=["sex", "age", "cohort"],
    )
)
pretrain(
    f"--data {work}/data --output {work}/pretrained --size nano --categorical sex --continuous age --epochs 4 "
    "--learning_rate 0.002 --progress false --checkpoint_every 0".split()
)

# %%
# The adapter. The new task's two tokens, the read-out and the stem's norm train whole; everything else by LoRA.
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from modeling_lcm import LCMForSequenceClassification, LCMProcessor, load_adapter, save_adapter


base = str(work / "pretrained" / "checkpoint")
processor = LCMProcessor.from_pretrained(base)
task = {"name": "cohort", "kind": "categorical", "labels": ["young", "elderly"]}
processor = LCMProcessor(processor.feature_extractor, processor.tokenizer.add_variable(task, task=True))
labels = {"id2label": {0: "young", 1: "elderly"}, "label2id": {"young": 0, "elderly": 1}}
model = LCMForSequenceClassification.from_pretrained(base, task_variable="cohort", **labels)
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="SEQ_CLS"))

cohort = load_cohort(work / "data")
subjects = cohort.table["subject_id"]
tested = subjects.isin(sorted(subjects.unique())[::4]).to_numpy()  # a quarter of the subjects stays out
encoded = processor.tokenizer(cohort.table, return_tensors="pt")["labels"]
scans = [{"connectivity": fc, "labels": label} for fc, label in zip(cohort.connectivity(), encoded, strict=True)]
training = [scan for scan, out in zip(scans, tested, strict=True) if not out]
arguments = TrainingArguments(
    str(work / "trainer"),
    num_train_epochs=6,
    learning_rate=1e-3,
    report_to="none",
    save_strategy="no",
    disable_tqdm=True,
    dataloader_pin_memory=False,
)
trainer = Trainer(model, arguments, train_dataset=training)
trainer.train()
save_adapter(model, processor, work / "adapter")

# %%
# The adapter's folder stands alone: it finds its base model, and brings its processor.
from sklearn.metrics import roc_auc_score


model, processor = load_adapter(work / "adapter")
with torch.no_grad():
    outputs = model(connectivity=torch.from_numpy(cohort.connectivity(tested.nonzero()[0])))
records = processor.post_process(outputs)
elderly = [record["cohort"]["probabilities"]["elderly"] for record in records]
truth = cohort.table["cohort"][tested] == "elderly"
print(f"ROC AUC on {tested.sum()} subjects that took no part: {roc_auc_score(truth, elderly):.2f}")

# %%
# Do not report this number: the checkpoint has seen the age of the tested subjects, which tells young from elderly.
# ``training.evaluate`` pretrains within every fold and puts simple models beside the result.
