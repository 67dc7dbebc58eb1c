"""How exactly the networks answer as the public reference code does: `python -m bench.parity` writes docs/parity.md.

Needs the golden arrays under tests/golden: inputs, and what upstream's code computes from them, networks with weights
that follow from the tensors' names.
"""

from __future__ import annotations

from pathlib import Path

import torch

from model.families import Network
from tests.golden import geometry_cases
from tests.golden.cases import CONFIGS, Case, cases, relative_error
from tests.golden.rule import golden_network

ROOT = Path(__file__).parent.parent
LIMIT = 1e-4
"""What the tests allow."""


def measure(network: Network, case: Case) -> dict[str, float]:
    """Worst relative error of each output, over all views; of MV-DUSt3R+, of path 0."""
    worst: dict[str, float] = {}
    for output, got, expected in case.compare(network):
        worst[output] = max(worst.get(output, 0.0), relative_error(output, got, expected))
    return worst


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# Parity with the reference implementations",
        "",
        "Worst relative error of each output against upstream's own code (float32, CPU, small networks with the same",
        "structure as the released ones), over all views. Points: distance over the point's norm; others: largest",
        f"difference over the largest value. All are to stay below {LIMIT:g}. Made by `make bench`.",
        "",
        "| network | case | views | batch | size | worst relative error |",
        "|---|---|---|---|---|---|",
    ]
    for folder, config in CONFIGS.items():
        network = golden_network(config)
        for case in cases(folder):
            batch, views, _, height, width = case.inputs["images"].shape
            errors = ", ".join(f"{output} {error:.1e}" for output, error in measure(network, case).items())
            lines.append(f"| {folder} | {case.name} | {views} | {batch} | {width} x {height} | {errors} |")
    lines += [
        "",
        "## Before and after the networks",
        "",
        "Pixels of photos, pointmaps of pairs to scenes, descriptors to matches. Tolerances are those of the goldens'",
        "notes where these give one; 0: every entry is equal.",
        "",
        "| case | output | worst error | tolerance | error |",
        "|---|---|---|---|---|",
    ]
    for name, case in geometry_cases.CASES.items():
        lines += [f"| {name} | {m.output} | {m.error:.2g} | {m.tolerance:.2g} | {m.kind} |" for m in case()]
    (ROOT / "docs" / "parity.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
