"""The device's ray caster on a GPU."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
def test_a_gpu_sees_the_same(request):
    # A machine for the GPU's tests may lack what makes rooms.
    pytest.importorskip("numba")
    pytest.importorskip("cv2")
    from train import cast
    from train.render import intrinsics

    size = (60, 44)
    room, walk = request.getfixturevalue("plain_room"), request.getfixturevalue("walk")
    poses, K = torch.from_numpy(walk[:2]), torch.from_numpy(intrinsics(size)).expand(2, 3, 3)
    torch.backends.cuda.matmul.allow_tf32 = True  # as training has it
    try:
        light, depth = (field.cpu() for field in cast.render(cast.upload(room, "cuda"), poses, K, size))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    here = cast.render(cast.upload(room, "cpu"), poses, K, size)
    assert ((depth / here[1] - 1).abs() < 1e-4).float().mean() > 0.999
    assert ((cast.tone(light) - cast.tone(here[0])).abs() < 0.01).float().mean() > 0.99
