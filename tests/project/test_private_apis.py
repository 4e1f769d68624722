"""What we use of libraries beyond their public names: it still does what we use it for, in the releases named here.

Each has no public way yet. A test that fails after an upgrade says which use to look at, and what it was checked with.
"""

import importlib
import logging
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from hub_cards.upload import HTTPError
from modeling_lcm import LCMConfig, LCMForMultitaskPretraining
from modeling_lcm.loading_lcm import without_load_report


VARIABLES = [{"name": "sex", "kind": "categorical", "labels": ["F", "M"], "loss_weight": 1.0}]


def small(**settings) -> LCMConfig:
    return LCMConfig.from_size("nano", num_regions=8, bei_variables=VARIABLES, num_hidden_layers=1, **settings)


def test_one_process_may_train_in_several_precisions() -> None:
    """`AcceleratorState._reset_state`, Accelerate 1.10 and 1.15: otherwise the second Accelerator is refused."""
    try:
        for precision in ("no", "bf16"):
            AcceleratorState._reset_state()
            assert Accelerator(mixed_precision=precision, cpu=True).mixed_precision == precision
    finally:
        AcceleratorState._reset_state()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
def test_packed_float32_products() -> None:
    """`mkldnn._reorder_linear_weight` and `_linear_pointwise`, PyTorch 2.6 and 2.13: weights laid out once."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, rows = (torch.randn(shape, generator=generator) for shape in ((48, 32), (48,), (5, 32)))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    product = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    torch.testing.assert_close(product, torch.nn.functional.linear(rows, weight, bias))


def test_the_report_of_new_weights_is_known_by_its_title(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The text "LOAD REPORT", Transformers 5.12 and 5.23: `from_pretrained` has no setting that leaves it out."""
    LCMForMultitaskPretraining(small()).save_pretrained(tmp_path)
    others = small(edge_readout=False)
    theirs = logging.getLogger("transformers.modeling_utils")
    theirs.addHandler(caplog.handler)
    try:
        PreTrainedModel.from_pretrained.__func__(LCMForMultitaskPretraining, tmp_path, config=others)
        assert " LOAD REPORT" in caplog.text
        caplog.clear()
        with without_load_report():
            PreTrainedModel.from_pretrained.__func__(LCMForMultitaskPretraining, tmp_path, config=others)
        assert caplog.text == ""
    finally:
        theirs.removeHandler(caplog.handler)


def test_transformers_knows_of_injected_adapters() -> None:
    """`_hf_peft_config_loaded`, Transformers 5.12 and 5.23: what its own methods ask before they touch an adapter."""
    peft = pytest.importorskip("peft")
    model = LCMForMultitaskPretraining(small())
    model.add_adapter(peft.LoraConfig(target_modules=["fc1"], r=2))
    assert model._hf_peft_config_loaded is True


def test_a_lost_connection_is_an_error_of_the_hub_clients_library() -> None:
    """`HfHubHTTPError.__mro__`, huggingface_hub 1.23 and later: its HTTP library has another name in each."""
    library = importlib.import_module(HTTPError.__module__.split(".")[0])
    assert library.__name__ in ("httpx", "httpx2")
    assert issubclass(library.ConnectError, HTTPError)


def test_tensors_without_content_name_their_storages() -> None:
    """`torch._subclasses.FakeTensorMode`, `_cdata`, PyTorch 2.6 and 2.13: what a pass keeps, without its memory.

    On tensors with content, `training.plan` of a batch of 64 took 9 GB and four times as long.
    """
    with FakeTensorMode():
        tensor = torch.empty(64, 1024)
        part, other = tensor[8:], torch.empty(64, 1024)
        assert part.untyped_storage()._cdata == tensor.untyped_storage()._cdata
        assert other.untyped_storage()._cdata != tensor.untyped_storage()._cdata
        assert tensor.untyped_storage().nbytes() == 64 * 1024 * 4
