"""The real Hub clients against a Hub on loopback: publishing, loading, offline use, and what goes wrong in between."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub_cards.conftest import TOKEN, Answer, Client, Finetuned, client_environment
from tests.hub_cards.hub_server import HubServer
from tests.hub_cards.hub_state import Fault


COMPARE = """
import torch
from modeling_lcm import LCMForMultitaskPretraining
theirs = LCMForMultitaskPretraining.from_pretrained({local!r}).state_dict()
result = all(torch.equal(theirs[name], tensor) for name, tensor in model.state_dict().items())
"""


@pytest.fixture(scope="module")
def published(client: Client, converted: Path, card_file: Path) -> str:
    """A converted checkpoint on the Hub, tagged v1."""
    answer = client.publish(converted, "--repo-id", "me/lcm-small", "--card", card_file, "--tag", "v1")
    assert answer.code == 0, answer.err
    assert "downloaded again, and every file and tensor is the same" in answer.out
    return "me/lcm-small"


def same_weights(client: Client, repository: str, local: Path, **arguments: Any) -> None:
    """A model loaded from the Hub has the local folder's weights."""
    load = (
        "from modeling_lcm import LCMForMultitaskPretraining\n"
        f"model = LCMForMultitaskPretraining.from_pretrained({repository!r}, **{arguments!r})\n"
    )
    assert client.code(load + COMPARE.format(local=str(local))).result


class TestPublish:
    def test_repository_has_what_the_dry_run_lists(
        self, hub: HubServer, client: Client, published: str, converted: Path, card_file: Path
    ) -> None:
        before = len(hub.requests)
        shown = client.command("hub_cards.publish", converted, "--repo-id", published, "--card", card_file)
        assert len(hub.requests) == before  # a dry run asks the Hub nothing
        listed = set(re.findall(r"^ +[\d,]+  (\S+)$", shown.out, re.MULTILINE))
        repository = hub.repositories["model", published]
        assert set(repository.files(repository.resolve("main"))) == listed | {".gitattributes"}
        assert sum(name.startswith("model-") for name in listed) > 2
        assert {"modeling_lcm.py", "conversion_report.json", "bei_vocab.json", "README.md"} <= listed

    def test_loads_by_tag_and_commit(self, hub: HubServer, client: Client, published: str, converted: Path) -> None:
        same_weights(client, published, converted, revision="v1")
        same_weights(client, published, converted, revision=hub.repositories["model", published].resolve("v1"))

    def test_again_changes_nothing(
        self, hub: HubServer, client: Client, published: str, converted: Path, card_file: Path
    ) -> None:
        commits = len(hub.repositories["model", published].commits)
        answer = client.publish(converted, "--repo-id", published, "--card", card_file, "--tag", "v1")
        assert answer.code == 0, answer.err
        assert len(hub.repositories["model", published].commits) == commits

    def test_update_and_revisions(
        self, hub: HubServer, client: Client, published: str, converted: Path, card_file: Path, tmp_path: Path
    ) -> None:
        changed = tmp_path / "changed"
        client.code(
            "from modeling_lcm import LCMForMultitaskPretraining, LCMProcessor\n"
            f"model = LCMForMultitaskPretraining.from_pretrained({str(converted)!r})\n"
            f"model.score.bias.data += 1\nmodel.save_pretrained({str(changed)!r})\n"
            f"LCMProcessor.from_pretrained({str(converted)!r}).save_pretrained({str(changed)!r})\n"
        )
        repository = hub.repositories["model", published]
        commits, stored = len(repository.commits), len(list(hub.folder.iterdir()))
        given = (changed, "--repo-id", published, "--card", card_file)
        refused = client.publish(*given)
        assert refused.code == 2
        assert "exists already with other content" in refused.err
        taken = client.publish(*given, "--tag", "v1", "--update")
        assert "tags are never moved" in taken.err
        # Neither refusal has uploaded anything.
        assert (len(repository.commits), len(list(hub.folder.iterdir()))) == (commits, stored)
        assert client.publish(*given, "--update", "--tag", "v2").code == 0
        # One file instead of shards: the shards are gone from v2, and still in v1.
        assert "model.safetensors" in repository.files(repository.resolve("v2"))
        assert not [path for path in repository.files(repository.resolve("v2")) if path.startswith("model-")]
        same_weights(client, published, changed, revision="v2")
        same_weights(client, published, converted, revision="v1")

    def test_repository_with_other_content(
        self, hub: HubServer, client: Client, converted: Path, card_file: Path
    ) -> None:
        client.code(
            "from huggingface_hub import HfApi\napi = HfApi()\napi.create_repo('me/taken')\n"
            "api.upload_file(path_or_fileobj=b'precious', path_in_repo='model.bin', repo_id='me/taken')\n"
        )
        answer = client.publish(converted, "--repo-id", "me/taken", "--card", card_file)
        assert answer.code == 2
        assert "model.bin" in answer.err
        assert hub.content("model", "me/taken", "model.bin") == b"precious"

    def test_private(self, hub: HubServer, client: Client, converted: Path, card_file: Path) -> None:
        answer = client.publish(converted, "--repo-id", "me/secret", "--card", card_file, "--private")
        assert answer.code == 0, answer.err
        assert hub.repositories["model", "me/secret"].private
        load = "from modeling_lcm import LCMConfig\n{}LCMConfig.from_pretrained('me/secret', cache_dir={!r})\n"
        client.code(load.format("", str(client.folder / "with_token")))
        refusal = ("try:\n    {}\nexcept OSError as error:\n    result = str(error)\n").format(
            f"LCMConfig.from_pretrained('me/secret', cache_dir={str(client.folder / 'without')!r})"
        )
        answer = client.code("from modeling_lcm import LCMConfig\nresult = None\n" + refusal, token=None)
        assert "not a valid model identifier" in answer.result or "gated" in answer.result

    def test_private_over_a_public_one(self, client: Client, converted: Path, card_file: Path) -> None:
        client.code("from huggingface_hub import HfApi\nHfApi().create_repo('me/public')\n")
        answer = client.publish(converted, "--repo-id", "me/public", "--card", card_file, "--private")
        assert answer.code == 2
        assert "is public" in answer.err

    def test_no_token(self, hub: HubServer, client: Client, converted: Path, card_file: Path) -> None:
        answer = client.publish(converted, "--repo-id", "me/nothing", "--card", card_file, token=None)
        assert answer.code == 2
        assert "hf auth login" in answer.err
        assert ("model", "me/nothing") not in hub.repositories

    def test_bad_token_is_not_printed(self, client: Client, converted: Path, card_file: Path) -> None:
        bad = "hf_wrongWrongWrongWrongWrong"
        answer = client.publish(converted, "--repo-id", "me/nothing", "--card", card_file, token=bad)
        assert answer.code == 2
        assert "hf auth login" in answer.err
        assert bad not in answer.out + answer.err


@pytest.fixture
def fresh(
    hub: HubServer, client: Client, converted: Path, card_file: Path, request: pytest.FixtureRequest
) -> Callable[..., tuple[str, Answer]]:
    """Function that publishes the checkpoint under a new name while faults are on; gives the name and the answer."""
    name = "me/fault-" + hashlib.sha1(request.node.name.encode()).hexdigest()[:10]

    def publish(*faults: Fault) -> tuple[str, Answer]:
        hub.faults.extend(faults)
        return name, client.publish(converted, "--repo-id", name, "--card", card_file, "--tag", "v1")

    return publish


class TestFaults:
    @pytest.mark.parametrize(
        "fault",
        [
            Fault("PUT", "/_lfs/", after=20_000),
            Fault("PUT", "/_lfs/", status=503),
            Fault("POST", r"/commit/main", status=503),
            Fault("POST", r"/commit/main"),
            Fault("POST", "/tag/", status=502),
            Fault("GET", r"/resolve/.*safetensors", after=30_000),
            Fault("GET", r"/resolve/.*\.json", status=503),
        ],
        ids=["upload cut", "upload 503", "commit 503", "commit cut", "tag 502", "download cut", "download 503"],
    )
    def test_retry_ends_complete(self, hub: HubServer, fresh: Any, converted: Path, fault: Fault) -> None:
        name, answer = fresh(fault)
        assert fault.times == 0  # it did happen
        assert answer.code == 0, answer.err
        assert TOKEN not in answer.out + answer.err
        repository = hub.repositories["model", name]
        assert len(repository.commits) == 2  # the Hub's own first one, and ours once
        for path in converted.glob("*.safetensors"):
            blob = repository.files(repository.resolve("v1"))[path.name]
            assert blob.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_answer_to_the_commit_lost(self, hub: HubServer, client: Client, fresh: Any) -> None:
        """The commit was made, but the client never heard of it: it is not made twice."""
        lost = Fault("LOST", "/commit/main")
        name, answer = fresh(lost)
        assert lost.times == 0
        assert answer.code == 0, answer.err
        assert len(hub.repositories["model", name].commits) == 2

    def test_hub_that_stays_down(self, hub: HubServer, client: Client, converted: Path, card_file: Path) -> None:
        hub.faults.append(Fault("GET", "/api/models/me/down", status=500, times=1000))
        answer = client.publish(converted, "--repo-id", "me/down", "--card", card_file)
        assert answer.code == 2
        assert "could not be reached" in answer.err
        assert TOKEN not in answer.err

    def test_content_that_changed_on_the_way(
        self, hub: HubServer, client: Client, converted: Path, card_file: Path
    ) -> None:
        """A Hub that serves something else than was uploaded is noticed."""
        digest = hashlib.sha256((converted / "official_unused.safetensors").read_bytes()).hexdigest()
        path = hub.path_of(digest)
        given = (converted, "--repo-id", "me/corrupt", "--card", card_file)
        assert client.publish(*given).code == 0
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        try:
            answer = client.publish(*given)
        finally:
            path.write_bytes(content)
        assert answer.code != 0
        assert "official_unused.safetensors" in answer.err

    def test_model_download_cut(self, hub: HubServer, client: Client, published: str, converted: Path) -> None:
        fault = Fault("GET", r"/resolve/.*model-00002.*safetensors", after=10_000)
        hub.faults.append(fault)
        same_weights(client, published, converted, revision="v1", cache_dir=str(client.folder / "cut"))
        assert fault.times == 0


class TestClients:
    def test_push_to_hub(self, client: Client, converted: Path) -> None:
        """The classes' own push_to_hub, and everything back with the Auto classes."""
        answer = client.code(
            f"""
import torch
from transformers import AutoModelForPreTraining, AutoProcessor
from modeling_lcm import LCMForMultitaskPretraining, LCMProcessor
local = LCMForMultitaskPretraining.from_pretrained({str(converted)!r})
local.push_to_hub("me/pushed", private=True, max_shard_size="60KB")
LCMProcessor.from_pretrained({str(converted)!r}).push_to_hub("me/pushed")
model = AutoModelForPreTraining.from_pretrained("me/pushed")
processor = AutoProcessor.from_pretrained("me/pushed")
processor.check_config(model.config)
same = all(torch.equal(local.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
result = [same, type(model).__module__, processor.feature_extractor.atlas]
"""
        )
        assert answer.result == [True, "modeling_lcm.modeling_lcm", "aal-116"]

    def test_snapshot_then_offline(self, hub: HubServer, client: Client, published: str, converted: Path) -> None:
        """Everything once from the Hub; then a new process, offline, finds it in the cache."""
        client.code(
            f"from huggingface_hub import snapshot_download\nsnapshot_download({published!r}, revision='v1')\n"
        )
        before = len(hub.requests)
        script = (
            f"""
import torch
from modeling_lcm import LCMForMultitaskPretraining, LCMProcessor
model = LCMForMultitaskPretraining.from_pretrained({published!r}, revision="v1")
processor = LCMProcessor.from_pretrained({published!r}, revision="v1")
"""
            + COMPARE.format(local=str(converted))
            + "assert result and processor.tokenizer.vocab_size == 27\n"
        )
        environment = client_environment(hub, client.home, HF_HUB_OFFLINE="1")
        subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120, cwd=client.folder)
        assert len(hub.requests) == before

    def test_without_the_package(
        self, hub: HubServer, client: Client, published: str, converted: Path, finetuned: Finetuned
    ) -> None:
        """A process that cannot import the package loads models and processors from the repositories' own code."""
        answer = client.publish(finetuned.checkpoint, "--repo-id", "me/demo", "--entry", "lcm-demo", "--tag", "v1")
        assert answer.code == 0, answer.err
        script = """
import numpy as np, torch
from transformers import AutoModelForPreTraining, AutoModelForSequenceClassification, AutoProcessor

def predict(kind, name, **arguments):
    model = kind.from_pretrained(name, **arguments).eval()
    processor = AutoProcessor.from_pretrained(name, **arguments)
    scan = np.random.default_rng(0).standard_normal((60, model.config.num_regions))
    with torch.no_grad():
        outputs = model(connectivity=processor(time_series=scan, return_tensors="pt")["connectivity"])
    assert processor.post_process(outputs)
    return outputs.logits.flatten().tolist(), type(model).__module__.split(".")[0]
"""
        calls = "[predict(AutoModelForPreTraining, {!r}{more}),"
        calls += " predict(AutoModelForSequenceClassification, {!r}{more})]"
        remote = calls.format(published, "me/demo", more=', revision="v1", trust_remote_code=True')
        # An entry of None makes `import modeling_lcm` fail even where it is installed.
        block = "import json, sys\nsys.modules['modeling_lcm'] = None"
        without = f"{block}\n{script}\nprint(json.dumps({remote}))\n"
        environment = client_environment(hub, client.folder / "no_package", PYTHONPATH="", HF_TOKEN=TOKEN)
        done = subprocess.run(
            [sys.executable, "-c", without],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            cwd=client.folder,
        )
        assert done.returncode == 0, done.stderr
        theirs = json.loads(done.stdout.strip().splitlines()[-1])
        local = calls.format(str(converted), str(finetuned.checkpoint), more="")
        ours = client.code(f"import modeling_lcm\n{script}\nresult = {local}\n").result
        for (logits, module), (expected, package) in zip(theirs, ours, strict=True):
            assert (module, package) == ("transformers_modules", "modeling_lcm")
            assert logits == pytest.approx(expected, abs=1e-5)

    def test_adapter(self, client: Client, finetuned: Finetuned, card_file: Path) -> None:
        """Base and adapter published; loaded as the card says, and with AutoPeftModel; equal to the merged model."""
        base = client.publish(finetuned.base, "--repo-id", "me/base", "--card", card_file, "--tag", "v1")
        assert base.code == 0, base.err
        given = ("--entry", "lcm-demo-adapter", "--base-model", "me/base", "--base-revision", "v1", "--tag", "v1")
        adapter = client.publish(finetuned.adapter, "--repo-id", "me/adapter", *given)
        assert adapter.code == 0, adapter.err
        answer = client.code(
            f"""
import numpy as np, re, torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForSequenceClassification
from modeling_lcm import LCMForSequenceClassification, adapter_task
code = re.search(r"```python\\n(.*?)```", ModelCard.load("me/adapter").text, re.DOTALL)[1]
names = {{"scan": np.random.default_rng(0).standard_normal((60, 200))}}
exec(code, names)
fc = names["inputs"]["connectivity"]
task = adapter_task("me/adapter")
with torch.no_grad():
    as_on_the_card = names["model"](connectivity=fc).logits
    automatic = AutoPeftModelForSequenceClassification.from_pretrained("me/adapter", **task).eval()
    merged = LCMForSequenceClassification.from_pretrained({str(finetuned.checkpoint)!r}).eval()
    expected = merged(connectivity=fc).logits
    result = [(found - expected).abs().max().item() for found in (as_on_the_card, automatic(connectivity=fc).logits)]
"""
        )
        assert max(answer.result) < 1e-5
        assert "'cohort': {'label':" in answer.out

    def test_adapter_push_to_hub(self, client: Client, finetuned: Finetuned) -> None:
        answer = client.code(
            f"""
import torch
from peft import PeftModel
from modeling_lcm import LCMConfig, LCMForSequenceClassification
config = LCMConfig.from_pretrained({str(finetuned.checkpoint)!r})
task = {{name: getattr(config, name) for name in ("task_variable", "problem_type", "id2label", "label2id")}}
load = lambda: LCMForSequenceClassification.from_pretrained({str(finetuned.base)!r}, **task)
model = PeftModel.from_pretrained(load(), {str(finetuned.adapter)!r})
model.push_to_hub("me/pushed-adapter")
again = PeftModel.from_pretrained(load(), "me/pushed-adapter")
ours = model.state_dict()
result = all(torch.equal(ours[name], tensor) for name, tensor in again.state_dict().items() if "lora" in name)
"""
        )
        assert answer.result

    def test_dataset(self, client: Client, prepared: Path) -> None:
        given = ("--repo-id", "me/lemon", "--entry", "lemon-schaefer200", "--tag", "v1")
        published = client.publish(prepared, *given)
        assert published.code == 0, published.err
        answer = client.code(
            f"""
import re
import numpy as np
from datasets import load_dataset
from huggingface_hub import DatasetCard, hf_hub_download
from training.data import load_cohort
names = {{}}
exec(re.search(r"```python\\n(.*?)```", DatasetCard.load("me/lemon").text, re.DOTALL)[1], names)
cohort = load_cohort({str(prepared)!r})
streamed = next(iter(load_dataset("me/lemon", split="train", revision="v1", streaming=True)))
fc_definition = hf_hub_download("me/lemon", "fc_definition.json", repo_type="dataset")
result = [
    bool((names["connectivity"] == cohort.connectivity()).all()),
    names["data"]["subject_id"][:] == cohort.table["subject_id"].tolist(),
    np.float16(streamed["connectivity"][:5]).tolist() == cohort.triangles[0][:5].tolist(),
    open(fc_definition).read() == open({str(prepared / "fc_definition.json")!r}).read(),
]
"""
        )
        assert answer.result == [True] * 4
