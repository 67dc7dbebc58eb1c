"""What training and evaluation are fed with, wherever it comes from: scenes of posed views with depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """B scenes of N views each. Pixel (row i, column j) has its centre at (j + 0.5, i + 0.5); OpenCV axes."""

    images: Tensor
    """(B, N, 3, H, W) float32 RGB in [-1, 1]."""
    depth: Tensor
    """(B, N, H, W) float32, metres along the camera's z axis; 0 where unknown."""
    valid: Tensor
    """(B, N, H, W) bool: depth is known."""
    intrinsics: Tensor
    """(B, N, 3, 3) float32 K, pixels of these images."""
    camera_to_world: Tensor
    """(B, N, 4, 4) float32, rigid, metres."""

    def __len__(self) -> int:
        """The number of scenes, B."""
        return self.images.shape[0]

    def __getitem__(self, scenes: slice | Tensor) -> Batch:
        """Some of the scenes, by a slice or an int64 or bool tensor: B stays an axis."""
        return self._each(lambda field: field[scenes])

    def select(self, views: Sequence[int] | Tensor) -> Batch:
        """The same scenes with these views alone, in this order."""
        index = torch.as_tensor(views, device=self.depth.device)
        return self._each(lambda field: field.index_select(1, index))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same on another device."""
        return self._each(lambda field: field.to(device, non_blocking=non_blocking))

    def points(self, reference: int | Tensor = 0) -> Tensor:
        """Ground-truth pointmaps (B, N, H, W, 3) in the camera frame of view `reference` (an index, or one a scene as
        int64 (B,)), metres. Pixels that are not valid lie at their own camera's centre."""
        return moved(self.rays() * self.depth[..., None], times(self.to_camera(reference), self.camera_to_world))

    def rays(self) -> Tensor:
        """(B, N, H, W, 3) in each camera's own frame, through the pixels' centres, with z = 1."""
        height, width = self.depth.shape[-2:]
        column = torch.arange(width, device=self.depth.device, dtype=torch.float32) + 0.5
        row = torch.arange(height, device=self.depth.device, dtype=torch.float32)[:, None] + 0.5
        focal_x, skew, centre_x, focal_y, centre_y = (
            self.intrinsics[..., i, j, None, None] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))
        )
        y = ((row - centre_y) / focal_y).expand_as(self.depth)
        x = (column - centre_x - skew * y) / focal_x
        return torch.stack([x, y, torch.ones_like(x)], dim=-1)

    def to_camera(self, reference: int | Tensor = 0) -> Tensor:
        """(B, 1, 4, 4): from the world to the camera frame of view `reference` (as in `points`)."""
        if isinstance(reference, Tensor) and reference.dim():
            pose = self.camera_to_world[torch.arange(len(self), device=reference.device), reference][:, None]
        else:
            pose = self.camera_to_world[:, reference][:, None]
        return rigid_inverse(pose)

    def _each(self, of: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(**{field.name: of(getattr(self, field.name)) for field in fields(self)})


# Geometry never goes through a matrix unit, whose TF32 and bfloat16 would put a wall centimetres beside itself.


def times(a: Tensor, b: Tensor) -> Tensor:
    """Products of small matrices (..., n, m) and (..., m, k), in the type they have even under autocast."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def moved(points: Tensor, pose: Tensor) -> Tensor:
    """Points (..., H, W, 3) under rigid transforms (..., 4, 4)."""
    columns = pose[..., None, None, :3, :].unbind(-1)
    return sum((points[..., i, None] * columns[i] for i in range(3)), start=columns[3])


def rigid_inverse(pose: Tensor) -> Tensor:
    """The inverse of rigid transforms (..., 4, 4)."""
    back = pose[..., :3, :3].transpose(-1, -2)
    top = torch.cat([back, -times(back, pose[..., :3, 3:])], dim=-1)
    return torch.cat([top, pose[..., 3:, :]], dim=-2)
