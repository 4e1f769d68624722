"""Several processes train like one: same numbers, every scan once, sharded weights, no waiting for a lost one."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from modeling_lcm import LCMForMultitaskPretraining
from tests.conftest import REPOSITORY
from tests.training.child_processes import finish, start_ranks
from tests.training.trainer.test_engine import arguments, assert_same_weights, make_data, make_model
from training import pretrain
from training.command_line.cli import load_yaml
from training.data.cohort import Cohort, load_cohort
from training.trainer.arguments import LoopArguments
from training.trainer.batches import SharedBatches, batch_shares
from training.trainer.distributed import SharedBatchNorm1d, is_lost_process, share_batch_norm, without_weights
from training.trainer.loop import Trainer


CONFIGS = REPOSITORY / "training" / "configs" / "accelerate"
# 17 scans in batches of 6: the last one is 5, shared as 3 and 2.
SCANS = 17
SETTINGS: dict[str, Any] = {"epochs": 3, "momentum_epochs": 1, "adaptive": "adaptive", "total_batch_size": 6}


def test_everything_that_is_shared_is_contiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL refuses other tensors; gloo, which the tests have, does not."""
    reduce, shared = torch.distributed.all_reduce, []

    def watch(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shared.append(tensor.is_contiguous())
        return reduce(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.distributed, "all_reduce", watch)
    monkeypatch.setattr("training.trainer.distributed.all_reduce", watch)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = make_model(edge_readout=True)
        share_batch_norm(model, True)
        model.train()
        batch = torch.eye(model.config.num_regions).repeat(4, 1, 1)
        labels = torch.zeros(4, len(model.config.bei_variables))
        model(batch, labels=labels).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(shared) >= 4
    assert all(shared)


def train_a_part(dataset: Path, folder: Path, cut: bool) -> None:
    """What each of two processes does: train, with checkpoints, and write down what it has seen."""
    trainer = make_trainer(load_cohort(dataset), folder, cut)
    rank, seen = trainer.accelerator.process_index, []
    fetch = trainer.train_data.__class__.__getitems__

    class Watched(trainer.train_data.__class__):
        def __getitems__(self, positions: list[int]) -> Any:
            seen.append(positions)
            return fetch(self, positions)

    trainer.train_data.__class__ = Watched
    validated = []
    gather = trainer.accelerator.gather_for_metrics

    def gather_and_count(values: tuple) -> tuple:
        gathered = gather(values)
        validated.append(len(gathered[0]))
        return gathered

    trainer.accelerator.gather_for_metrics = gather_and_count
    assert isinstance(trainer.model, DistributedDataParallel)
    history = trainer.train()
    torch.save(trainer.trained.state_dict(), folder / f"weights_{rank}.pt")
    content = {"history": history, "seen": seen, "validated": validated}
    (folder / f"result_{rank}.json").write_text(json.dumps(content))


def make_trainer(cohort: Cohort, folder: Path | None, cut: bool = False, **settings: Any) -> Trainer:
    """The same training for one process and for several; batch norm in training mode.

    In float64: Adam makes full steps of the rounding errors of gradients that are zero.
    """
    resume = cut and folder is not None and (folder / "arguments.json").is_file()
    train, validation = make_data(cohort, range(SCANS)), make_data(cohort, range(SCANS, 24))
    settings = {**SETTINGS, "batch_size": 6, "checkpoint_every": 1, "resume": resume, **settings}
    return Trainer(make_model().double(), train, validation, arguments(**settings), folder)


def logs(folder: Path) -> str:
    """What all processes printed."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("rank_*.log")))


def test_two_processes_train_like_one(cohort: Cohort, dataset: Path, tmp_path: Path) -> None:
    assert finish(start_ranks(train_a_part, dataset, tmp_path, False, folder=tmp_path)) == [0, 0], logs(tmp_path)
    results = [json.loads((tmp_path / f"result_{rank}.json").read_text()) for rank in (0, 1)]
    assert results[0]["history"] == results[1]["history"]
    alone = make_trainer(cohort, None)
    for one, two in zip(alone.train(), results[0]["history"], strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-9)
        assert one["validation_loss"] == pytest.approx(two["validation_loss"], abs=1e-6)
        assert one["lr"] == two["lr"]
    weights = [torch.load(tmp_path / f"weights_{rank}.pt") for rank in (0, 1)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), f"{name} differs between the processes"
    shared = make_model().double()
    shared.load_state_dict(weights[0])
    assert_same_weights(alone.trained, shared, tolerance=1e-8)
    # Batch norm's statistics were among these; the checkpoint has them, too.
    checkpoint = sorted((tmp_path / "resume").iterdir())[-1]
    saved = make_model().double()
    saved.load_state_dict(load_file(checkpoint / "best.safetensors"))
    assert torch.equal(saved.model.stem.norm.running_var, shared.model.stem.norm.running_var)
    assert (shared.model.stem.norm.running_var - 1).abs().min() > 1e-2
    # Every scan once in an epoch, in one of the processes; every validation scan once.
    for epoch in range(3):
        rows = [row for result in results for batch in result["seen"][3 * epoch : 3 * epoch + 3] for row in batch]
        assert sorted(rows) == list(range(SCANS))
    assert [result["validated"] for result in results] == [[24 - SCANS] * 3] * 2


def test_shared_batch_norm_alone_is_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.trainer.distributed._total", lambda tensor: tensor)
    torch.manual_seed(0)
    rows = 3 + 5 * torch.randn(40, 6)
    plain, shared = nn.Sequential(nn.BatchNorm1d(6)), nn.Sequential(nn.BatchNorm1d(6))
    share_batch_norm(shared, True)
    assert type(shared[0]) is SharedBatchNorm1d
    results = []
    for norm in (plain, shared):
        inputs = rows.clone().requires_grad_()
        outputs = norm(inputs)
        outputs.square().mul(torch.arange(6.0)).sum().backward()
        results.append([outputs, inputs.grad, norm[0].weight.grad, norm[0].running_mean, norm[0].running_var])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    share_batch_norm(shared, False)
    assert type(shared[0]) is nn.BatchNorm1d
    torch.testing.assert_close(shared.eval()(rows), plain.eval()(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("scans", "size", "processes"), [(17, 3, 2), (18, 3, 2), (19, 3, 2), (19, 4, 3), (5, 8, 2)])
def test_batches_share_all_scans(scans: int, size: int, processes: int) -> None:
    parts = [SharedBatches(scans, size, 7, process, processes) for process in range(processes)]
    orders = []
    for epoch in (0, 1):
        for part in parts:
            part.set_epoch(epoch)
        batches = [list(part) for part in parts]
        assert {len(own) for own in batches} == {len(parts[0])}
        for together in zip(*batches, strict=True):
            lengths = [len(batch) for batch in together]
            assert min(lengths) >= 1
            assert max(lengths) - min(lengths) <= 1
        order = [row for together in zip(*batches, strict=True) for batch in together for row in batch]
        assert sorted(order) == list(range(scans))
        orders.append(order)
    assert orders[0] != orders[1]
    parts[0].set_epoch(1, skip=1)
    assert list(parts[0]) == batches[0][1:]


def test_order_is_the_same_for_every_number_of_processes() -> None:
    alone = list(SharedBatches(18, 6, 7))
    two = zip(*(list(SharedBatches(18, 3, 7, process, 2)) for process in (0, 1)), strict=True)
    assert alone == [first + second for first, second in two]


@pytest.mark.parametrize(
    ("total", "size", "processes", "shares"),
    [(0, 5, 3, (5, 1)), (16, 16, 1, (16, 1)), (16, 16, 2, (8, 1)), (16, 3, 2, (2, 4)), (6, 6, 3, (2, 1))],
)
def test_total_batch_size_is_shared(total: int, size: int, processes: int, shares: tuple[int, int]) -> None:
    assert batch_shares(LoopArguments(total_batch_size=total, batch_size=size), processes) == shares


@pytest.mark.parametrize(("total", "processes"), [(16, 3), (2, 4)])
def test_number_of_processes_that_does_not_divide_the_batch(total: int, processes: int) -> None:
    with pytest.raises(ValueError, match=f"total_batch_size {total} cannot be shared evenly by {processes} processes"):
        batch_shares(LoopArguments(total_batch_size=total), processes)
    with pytest.raises(ValueError, match="2 training scans cannot be shared by 3 processes"):
        SharedBatches(2, 4, 0, 0, 3)


# --- resuming with several processes ---


def train_on(dataset: Path, folder: Path, until: int) -> None:
    """Train, lose power at the end of an epoch, go on in the next life; print what goes wrong."""
    trainer = make_trainer(load_cohort(dataset), folder, cut=True)
    validate = trainer._validate

    def validate_or_die() -> float | None:
        if trainer.state.epoch == until:
            os.kill(os.getpid(), signal.SIGKILL)
        return validate()

    trainer._validate = validate_or_die
    trainer.train()
    torch.save(trainer.trained.state_dict(), folder / f"weights_{trainer.accelerator.process_index}.pt")


def test_two_processes_go_on_where_they_were(cohort: Cohort, dataset: Path, tmp_path: Path) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    for folder in (cut, whole):
        folder.mkdir()
    assert finish(start_ranks(train_on, dataset, cut, 1, folder=tmp_path)) == [-signal.SIGKILL] * 2, logs(tmp_path)
    assert finish(start_ranks(train_on, dataset, cut, -1, folder=tmp_path)) == [0, 0], logs(tmp_path)
    assert finish(start_ranks(train_on, dataset, whole, -1, folder=tmp_path)) == [0, 0], logs(tmp_path)
    weights = [torch.load(folder / "weights_1.pt") for folder in (cut, whole)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    with pytest.raises(ValueError, match=r"other settings: processes \(was 2, is 1\)\.$"):
        make_trainer(cohort, cut, cut=True).train()


# --- lost processes ---


def pretrain_until_lost(argv: list[str], fatal: int) -> None:
    """Pretrain as from the command line; the second process is killed, or stands still, in its second step."""
    step = Trainer._step

    def step_or_end(trainer: Trainer, *given: Any) -> float:
        if trainer.accelerator.process_index == 1 and trainer.state.step == 1:
            os.kill(os.getpid(), fatal)
        return step(trainer, *given)

    Trainer._step = step_or_end
    pretrain.main(argv)


@pytest.mark.parametrize("fatal", [signal.SIGKILL, signal.SIGSTOP])
def test_lost_process_ends_the_others_with_a_message(fatal: int, dataset: Path, tmp_path: Path) -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    settings = {**size, "epochs": 3, "batch_size": 4, "process_timeout": 15, "checkpoint_every_steps": 1}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    argv = ["--output", str(tmp_path / "out"), "--data", str(dataset), "--no_progress", *flags]
    processes = start_ranks(pretrain_until_lost, argv, int(fatal), folder=tmp_path)
    processes[0].join(150)  # more than process_timeout, much less than Accelerate's half hour
    assert processes[0].exitcode == 2, logs(tmp_path)
    processes[1].kill()
    finish(processes)
    (line,) = [line for line in (tmp_path / "rank_0.log").read_text().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: Process 0 of 2 lost contact with another one (")
    assert line.endswith(f"--resume true goes on from {tmp_path}/out/run/resume/epoch_00000_step_0000001.")


def test_errors_of_the_program_are_not_taken_for_lost_processes() -> None:
    assert not is_lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert is_lost_process(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"))


# --- sharded weights ---

shards_on_the_cpu = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="PyTorch before 2.7 shards weights on GPUs only"
)


def shard_and_step(dataset: Path, folder: Path) -> None:
    """Two steps with weights sharded by `fully_shard`, layer by layer; the whole weights are written down."""
    state = PartialState(cpu=True)
    model = make_model()
    for layer in model.model.layers:
        fully_shard(layer, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
    weight = model.model.layers[0].fc1.weight
    assert weight.to_local().numel() == weight.numel() // 2
    take_steps(model, load_cohort(dataset), state.process_index, 2)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if state.is_main_process:
        torch.save(whole, folder / "whole.pt")
    state.wait_for_everyone()


def take_steps(model: LCMForMultitaskPretraining, cohort: Cohort, rank: int, ranks: int) -> None:
    """Three optimisation steps on 8 scans shared by the ranks; batch norm in evaluation mode."""
    data = make_data(cohort, range(8))
    counts = (data.labels["labels"] != -100).sum(0)
    batch = data.__getitems__(list(range(8))[rank::ranks])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.model.stem.norm.eval()
    model.bei_layer_choice.eval()
    for _ in range(3):
        loss = model(batch["connectivity"], labels=batch["labels"], target_counts=counts).loss * ranks
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@shards_on_the_cpu
def test_weights_sharded_by_torch_train_alike(cohort: Cohort, dataset: Path, tmp_path: Path) -> None:
    assert finish(start_ranks(shard_and_step, dataset, tmp_path, folder=tmp_path)) == [0, 0], logs(tmp_path)
    alone, sharded = make_model(), make_model(seed=1)
    take_steps(alone, cohort, 0, 1)
    sharded.load_state_dict(torch.load(tmp_path / "whole.pt"))
    assert_same_weights(alone, sharded, tolerance=1e-5)


def train_sharded(dataset: Path, folder: Path, resume: bool) -> None:
    """The whole training loop with Accelerate's FSDP2, which it would leave out on the CPU if it was not told so."""
    content = load_yaml(CONFIGS / "fsdp2.yaml")["fsdp_config"]
    make = Trainer._make_accelerator

    def make_sharding(trainer: Trainer) -> Any:
        accelerator = make(trainer)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=content["fsdp_version"],
            auto_wrap_policy=content["fsdp_auto_wrap_policy"].lower(),
            transformer_cls_names_to_wrap=[content["fsdp_transformer_layer_cls_to_wrap"]],
            state_dict_type=content["fsdp_state_dict_type"],
            reshard_after_forward=content["fsdp_reshard_after_forward"],
        )
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        return accelerator

    Trainer._make_accelerator = make_sharding
    with pytest.raises(ValueError, match="Adafactor cannot step sharded weights"):
        make_trainer(load_cohort(dataset), None, optimizer="adafactor")
    trainer = make_trainer(load_cohort(dataset), folder, cut=resume)
    assert type(trainer.model).__name__.startswith("FSDP")
    main = trainer.accelerator.is_main_process
    history = trainer.train()
    if main:
        trainer.trained.save_pretrained(folder / "saved")
        (folder / "history.done").write_text(json.dumps(history))


@shards_on_the_cpu
def test_training_loop_with_sharded_weights(cohort: Cohort, dataset: Path, tmp_path: Path) -> None:
    for resume in (False, True):  # the second time from the last checkpoint
        codes = finish(start_ranks(train_sharded, dataset, tmp_path, resume, folder=tmp_path))
        assert codes == [0, 0], logs(tmp_path)
        alone = make_trainer(cohort, None)
        history = json.loads((tmp_path / "history.done").read_text())
        for one, two in zip(alone.train(), history, strict=True):
            assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-9)
            assert one["validation_loss"] == pytest.approx(two["validation_loss"], abs=1e-6)
        sharded = LCMForMultitaskPretraining.from_pretrained(tmp_path / "saved")
        assert_same_weights(alone.trained, sharded, tolerance=1e-8)


def test_fsdp_configuration_on_the_cpu_is_refused(
    cohort: Cohort, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match="FSDP configuration needs GPUs, and the processes run on the CPU"):
        Trainer(make_model(), make_data(cohort), None, arguments())
    with pytest.raises(SystemExit) as caught:
        pretrain.main(["--output", "unused", "--data", str(dataset)])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: This FSDP configuration needs GPUs")


def test_model_without_weights_keeps_its_structure() -> None:
    model = make_model()
    blank = without_weights(model)
    assert all(tensor.is_meta for tensor in blank.state_dict().values())
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    blank.load_state_dict(model.state_dict(), assign=True)
    connectivity = torch.from_numpy(np.eye(10, dtype=np.float32))[None]
    torch.testing.assert_close(blank.eval()(connectivity).logits, model.eval()(connectivity).logits)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_launch_configurations_are_read_by_accelerate(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes > 1
