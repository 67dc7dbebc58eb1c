"""A rendered room as a batch of posed views with depth."""

from __future__ import annotations

import numpy as np
import torch

from train.batch import Batch
from train.render import Room, intrinsics, render


def photographed(room: Room, poses: np.ndarray, size: tuple[int, int] = (48, 32)) -> Batch:
    """One scene: pictures of (width, height) at poses (N, 4, 4), without noise."""
    K = intrinsics(size)
    seen = [render(room, pose, K, size) for pose in poses]
    images = torch.from_numpy(np.stack([one.rgb for one in seen])).permute(0, 3, 1, 2)
    return Batch(
        images=images[None] / 127.5 - 1,
        depth=torch.from_numpy(np.stack([one.depth for one in seen]))[None],
        valid=torch.from_numpy(np.stack([one.valid for one in seen]))[None],
        intrinsics=torch.from_numpy(K).float().expand(1, len(poses), 3, 3),
        camera_to_world=torch.from_numpy(poses).float()[None],
    )
