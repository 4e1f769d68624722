"""Files above the Hub client's chunks: uploaded in parts, downloaded in ranges."""

import re
from pathlib import Path

from tests.hub_cards.conftest import Client
from tests.hub_cards.hub_server import HubServer
from tests.hub_cards.hub_state import Fault


class TestLargeFiles:
    def test_parts_and_ranges(
        self, hub: HubServer, client: Client, tmp_path: Path, converted: Path, card_file: Path
    ) -> None:
        """Above the client's 10 MiB chunks: uploaded in parts, and a cut download goes on with a range."""
        wide = tmp_path / "wide"
        client.code(
            f"""
from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMProcessor
processor = LCMProcessor.from_pretrained({str(converted)!r})
config = LCMConfig(hidden_size=640, num_hidden_layers=2, bei_variables=processor.tokenizer.model_variables)
LCMForMultitaskPretraining(config).save_pretrained({str(wide)!r})
processor.save_pretrained({str(wide)!r})
"""
        )
        fault = Fault("GET", r"/resolve/.*model\.safetensors", after=23_000_000)
        hub.faults.append(fault)
        start = len(hub.requests)
        answer = client.publish(wide, "--repo-id", "me/wide", "--card", card_file)
        assert answer.code == 0, answer.err
        assert fault.times == 0
        size = (wide / "model.safetensors").stat().st_size
        assert size > 30_000_000
        seen = hub.requests[start:]
        parts = [path for method, path, _ in seen if method == "PUT" and re.search(r"/_lfs/[0-9a-f]{64}/\d+$", path)]
        assert len(parts) == -(-size // 8_000_000)
        assert [asked for _, path, asked in seen if path.endswith("/model.safetensors") and asked]
