"""How exactly the networks answer as the public reference code does: `python -m bench.parity` writes docs/parity.md.

Needs the golden arrays under tests/golden: inputs, and what upstream's code computes from them with weights that follow
from the tensors' names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.contract import OUTPUTS
from model.config import ModelConfig
from model.mvdust3r import MVDUSt3R
from tests.golden.rule import golden_network

ROOT = Path(__file__).parent.parent
PLAIN = ModelConfig(
    encoder_width=64, encoder_depth=2, encoder_heads=4, decoder_width=48, decoder_depth=3, decoder_heads=4
)
NETWORKS = {"mvdust3r": PLAIN, "mvdust3r_plus": replace(PLAIN, paths=4)}
UPSTREAM_FIELDS = dict(zip(OUTPUTS, ("pts3d", "conf", "scale", "rotation", "opacity"), strict=True))


def measure(network: MVDUSt3R, images: torch.Tensor, golden: dict[str, NDArray]) -> dict[str, float]:
    """Worst relative error over all views of path 0.

    Points: |p - q| / |q| of each point. Others: largest difference over the largest value.
    """
    with torch.inference_mode():
        output = network(images)
    batch, views, paths = *images.shape[:2], network.config.paths
    worst: dict[str, float] = {}
    for field, theirs in UPSTREAM_FIELDS.items():
        for view in range(views):
            if (expected := golden.get(f"view{view}/{theirs}")) is None:
                continue
            expected = expected.reshape(batch, paths, *expected.shape[1:])[:, 0]
            got = getattr(output, field)[:, view].numpy().reshape(expected.shape)
            if field == "points":
                errors = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
            else:
                errors = np.abs(got - expected) / np.abs(expected).max()
            worst[field] = max(worst.get(field, 0.0), float(errors.max()))
    return worst


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# Parity with the reference implementations",
        "",
        "Worst relative error of each output against upstream's own code (float32, CPU, small networks with the same",
        "structure as the released ones), over all views. Points: distance over the point's norm; others: largest",
        "difference over the largest value. Empty: not among the reference's stored outputs. Made by `make bench`.",
        "",
        f"| network | case | views | batch | {' | '.join(OUTPUTS)} |",
        f"|---|---|---|---|{'---|' * len(OUTPUTS)}",
    ]
    for name, config in NETWORKS.items():
        network = golden_network(config)
        folder = ROOT / "tests" / "golden" / name
        with np.load(folder / "inputs.npz") as inputs, np.load(folder / "outputs.npz") as outputs:
            for key in inputs.files:
                case = key.split("/")[0]
                images = torch.from_numpy(inputs[key]).transpose(0, 1).contiguous()
                golden = {k.removeprefix(case + "/"): outputs[k] for k in outputs.files if k.startswith(case + "/")}
                worst = measure(network, images, golden)
                cells = (f"{worst[field]:.1e}" if field in worst else "" for field in OUTPUTS)
                size = f"{images.shape[1]} | {images.shape[0]}"
                lines.append(f"| {config.network} | {case} | {size} | {' | '.join(cells)} |")
    (ROOT / "docs" / "parity.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
