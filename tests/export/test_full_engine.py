"""NVIDIA's own parser and builder take MV-DUSt3R+ at its released size, in fp16, whole: minutes, and 6 GB of memory."""

from __future__ import annotations

import logging
from pathlib import Path

import psutil
import pytest

from export.contract import GRAPH_FILE, Description, sha256
from export.engine import build_engine, read_record, wanted_engine
from export.onnx_graph import write_graph
from export.precision import written_in
from export.served import weights_sha256
from model.config import MVDUST3R_PLUS
from tests.golden.rule import golden_network

MEMORY = 10e9
"""Bytes: what network, graph and builder take, and room beside it."""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_released_size_is_built_for_sm89(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For 13 to 24 views, one of five profiles. `python -m bench.engines` builds all, and in every precision."""
    pytest.importorskip("tensorrt_rtx")
    if psutil.virtual_memory().available < MEMORY:
        pytest.skip("takes more memory than is free here")
    caplog.set_level(logging.ERROR, "torch.onnx")
    network = golden_network(MVDUST3R_PLUS)
    write_graph(written_in(network, "fp16"), tmp_path / GRAPH_FILE, 224)
    description = Description(
        name="full",
        network=network.config.network,
        licence="none",
        square=224,
        paths=4,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        weights_sha256=weights_sha256(network),
        files={path.name: sha256(path) for path in tmp_path.iterdir()},
        min_views=13,
        max_views=24,
        precision="fp16",
    )
    description.write(tmp_path)
    del network
    record = read_record(build_engine(tmp_path, wanted_engine(description, "sm89"), tmp_path / "engines"))
    assert [profile.views for profile in record.key.profiles] == [(13, 24)]
    # Weights in half precision, all of them, and kernels.
    assert 2 * description.parameters < record.size < 1.1 * 2 * description.parameters
    # 24 of the encoder, and six a layer of the decoder: none falls apart.
    assert record.attentions == record.fused_attentions == 24 + 6 * 12
