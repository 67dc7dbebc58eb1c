"""Training's losses: the reference implementation's goldens, laws, and what they must not be moved by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.mvdust3r import MVDUSt3R
from tests.tiny import TINY_CONFIG, tiny_network

NETWORKS = [(TINY_CONFIG, (2, 0, 3)), (TINY_CONFIG, (0, 1, 2, 3)), (replace(TINY_CONFIG, paths=1), (2,))]


@pytest.mark.parametrize(("config", "references"), NETWORKS)
def test_every_path_is_what_the_network_answers_for_that_reference(config, references):
    """Path m of all is the one path of a forward pass with references[m] first."""
    network = tiny_network(config)
    images = torch.rand(2, 4, 3, 32, 48) * 2 - 1
    with torch.inference_mode():
        every = network.every_path(images, references)
        for path, reference in enumerate(references):
            alone = network(images, (reference, *(r for r in references if r != reference)))
            for name in ("points", "confidence", "scale", "rotation", "opacity", "colour"):
                got, expected = getattr(every, name)[:, path], getattr(alone, name)
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=5e-5)


def test_every_path_is_trained():
    network = MVDUSt3R(TINY_CONFIG)
    network.every_path(torch.rand(1, 4, 3, 32, 32)).points.square().mean().backward()
    assert all(block.mlp.fc2.weight.grad.abs().sum() > 0 for block in network.decoder.cross_reference_blocks)
    with pytest.raises(ValueError, match="all different"):
        network.every_path(torch.rand(1, 4, 3, 32, 32), (0, 0))


# ---------------------------------------------------------------- points

GOLDEN = Path(__file__).parents[1] / "golden" / "geometry" / "mvdust3r_losses.npz"
CASES = {"single_ref": (0,), "multi_ref4": (0, 1, 2, 3)}


@dataclass
class Golden:
    """The reference implementation's case in our order: (B, M, N, H, W, ...), views as they are."""

    arrays: dict[str, Tensor]
    references: tuple[int, ...]

    @classmethod
    def of(cls, case: str) -> Golden:
        with np.load(GOLDEN) as file:
            own = {k.removeprefix(f"{case}/"): torch.from_numpy(file[k]) for k in file.files if k.startswith(case)}
        return cls(own, CASES[case])

    @property
    def views(self) -> int:
        return sum(name.startswith("gt") for name in self.arrays) // 3

    def predicted(self, field: str, prefix: str = "pred") -> Tensor:
        """Points or confidence, or with the prefix `grad_pred` their slopes."""
        names = [field if field == "conf" or view == 0 else "pts3d_in_other_view" for view in range(self.views)]
        slots = torch.stack([self.arrays[f"{prefix}{v}/{name}"] for v, name in enumerate(names)], dim=1)
        return self.ordered(slots)

    def ordered(self, slots: Tensor) -> Tensor:
        """Slots (B * M, N, ...) to views (B, M, N, ...): in path m, slots 0 and m were exchanged."""
        slots = slots.unflatten(0, (-1, len(self.references))).clone()
        for path in self.references:
            slots[:, path, [0, path]] = slots[:, path, [path, 0]]
        return slots

    def of_views(self, field: str) -> Tensor:
        return torch.stack([self.arrays[f"gt{view}/{field}"] for view in range(self.views)], dim=1)

    @property
    def truth(self) -> Tensor:
        """(B, M, N, H, W, 3)."""
        into = torch.linalg.inv(self.of_views("camera_pose")[:, list(self.references)])[:, :, None, None]
        points = self.of_views("pts3d")[:, None, ..., None, :]
        return (into[..., :3, :3] * points).sum(-1) + into[..., :3, 3] if points.dim() == 6 else points


@pytest.mark.parametrize("case", CASES)
def test_losses_and_slopes_are_the_golden_ones(case):
    golden = Golden.of(case)
    points, confidence = (golden.predicted(field).requires_grad_() for field in ("pts3d", "conf"))
    truth, valid, references = golden.truth, golden.of_views("valid_mask"), golden.references
    loss = confidence_loss(points, confidence, truth, valid, references)
    regression = regression_loss(points, truth, valid, references)
    in_metres = regression_loss(points, truth, valid, references, gt_scale=True)
    for name, got in {
        "conf_loss": loss.total,
        "conf_loss_1": loss.reference,
        "conf_loss_2_sum": loss.others,
        "regr3d": regression.total,
        "regr3d_gt_scale": in_metres.total,
    }.items():
        np.testing.assert_allclose(got.item(), golden.arrays[name], rtol=1e-5, err_msg=name)
    loss.total.backward()
    for field, slope in (("pts3d", points.grad), ("conf", confidence.grad)):
        expected = golden.predicted(field, "grad_pred")
        assert (slope - expected).abs().max() < 2e-5 * expected.abs().max()
