"""An endless, seeded stream of batches, rendered where the training runs.

Rooms are drafted on the CPU by processes in the background (`train.drafts`). The device renders all views of a room at
once (`train.cast`), gives each the faults of a photo, and keeps them in a ring: bytes, and depth in half precision. A
batch is gathered from the ring, each scene from a room of its own choice, while new rooms replace the oldest.

    stream = Stream(Settings(side=112, rooms=64), seed=0, device="cuda", workers=14)
    batch = stream.draw(scenes=256, views=4)

To see what training sees: python -m train.stream sheet.jpg
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from model.types import Float64
from train import cast
from train.batch import Batch
from train.drafts import Draft, Settings, draft, settle


def develop(light: Tensor, rng: np.random.Generator) -> Tensor:
    """(V, 3, H, W) u8 photos of exposed light (V, H, W, 3): what a phone makes of it.

    In this order: blur of a hand that moved and a lens out of focus, uneven exposure and white balance, a lens that
    darkens to the corners, the sensor's noise, the tone curve, and JPEG. `rng` settles all of it.
    """
    views, height, width, _ = light.shape
    device = light.device

    def values(array: Float64) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=device).view(views, -1, 1, 1)

    picture = _blurred(light.permute(0, 3, 1, 2).contiguous(), rng)
    # A phone exposes for the mean, half way.
    mean = picture.mean((1, 2, 3), keepdim=True).clamp(min=1e-3)
    gain = np.exp(rng.normal(0, 0.15, (views, 1)) + rng.normal(0, 0.04, (views, 3)))
    picture = picture * (0.4 / mean) ** 0.5 * values(gain)
    y, x = (torch.linspace(-1, 1, n, device=device) for n in (height, width))
    picture = picture * (1 - values(rng.uniform(0, 0.12, views)) * (x * x + (y * y)[:, None]))
    value = cast.tone(picture)
    dice = torch.Generator(device).manual_seed(int(rng.integers(1 << 62)))
    grain = torch.randn(value.shape, generator=dice, device=device)
    sigma = values(rng.uniform(0.5, 2.0, views))
    value = value + sigma * (0.003**2 + 0.006**2 * value).sqrt() * grain
    value = jpeg(value.clamp(0, 1), values(rng.uniform(75, 98, views)))
    return (value * 255 + 0.5).to(torch.uint8)


def _blurred(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures (V, 3, H, W), a quarter of them moved by up to a pixel and a half, all a little out of focus."""
    views, (y, x) = len(picture), np.mgrid[-3:4, -3:4]
    angle, length = rng.uniform(0, math.pi, (views, 1, 1)), rng.uniform(0, 1.5, (views, 1, 1))
    length *= rng.uniform(size=(views, 1, 1)) < 0.25
    focus = rng.uniform(0.15, 0.45, (views, 1, 1))
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    # A segment seen out of focus, by the distance to it.
    past = np.maximum(np.abs(along) - length / 2, 0)
    share = np.exp(-(past**2 + across**2) / (2 * focus**2))
    share /= share.sum((1, 2), keepdims=True)
    kernel = torch.as_tensor(share, dtype=torch.float32, device=picture.device)
    stacked = functional.pad(picture, (3, 3, 3, 3), mode="replicate").flatten(0, 1)[None]
    weight = kernel.repeat_interleave(3, 0)[:, None]
    return functional.conv2d(stacked, weight, groups=3 * views)[0].view_as(picture)


_LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMA = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""
"""The quantisation tables of ITU-T T.81, annex K."""
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg(value: Tensor, quality: Tensor) -> Tensor:
    """sRGB (V, 3, H, W), 0 to 1, after JPEG of a quality (V, 1, 1, 1) of 50 to 100: 4:2:0, the standard's tables scaled
    as libjpeg does. What follows in a file, entropy coding, changes nothing."""
    height, width = value.shape[-2:]
    padded = functional.pad(value, (0, -width % 16, 0, -height % 16), mode="replicate") * 255
    matrix = torch.tensor(_YCC, device=value.device)
    full = torch.einsum("ij,vjhw->vihw", matrix, padded)
    scale = (200 - 2 * quality) / 100
    luma = _quantised(full[:, :1] - 128, _LUMA, scale) + 128
    chroma = _quantised(functional.avg_pool2d(full[:, 1:], 2), _CHROMA, scale)
    chroma = functional.interpolate(chroma, scale_factor=2, mode="bilinear")
    back = torch.einsum("ij,vjhw->vihw", torch.linalg.inv(matrix), torch.cat([luma, chroma], 1))
    return (back[..., :height, :width] / 255).clamp(0, 1)


def _quantised(plane: Tensor, table: str, scale: Tensor) -> Tensor:
    """(V, C, H, W) with the cosine coefficients of its 8 x 8 blocks rounded to multiples of a scaled table."""
    k = torch.arange(8, device=plane.device, dtype=torch.float32)
    cosine = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    cosine[0] /= math.sqrt(2)
    base = torch.tensor([float(n) for n in table.split()], device=plane.device).view(8, 8)
    step = (base * scale).round().clamp(min=1)[:, :, None, None]  # (V, 1, 1, 1, 8, 8)
    views, channels, height, width = plane.shape
    blocks = plane.view(views, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = cosine @ blocks @ cosine.T
    blocks = cosine.T @ ((coefficients / step).round() * step) @ cosine
    return blocks.transpose(3, 4).reshape(plane.shape)


# ---------------------------------------------------------------- the ring


class Stream:
    """Batches without end. With `hold` > 0, draw number k of a seed is the same whatever came before it.

    workers: processes that draft rooms; 0: none, each room is drafted when it is needed.
    """

    def __init__(self, settings: Settings, seed: int, device: torch.device | str, *, workers: int = 0) -> None:
        self.settings = settings
        self.seed = seed
        self.device = torch.device(device)
        self.position = 0
        """Number of the next draw."""
        self._next = 0
        """Index of the next room."""
        rooms, views, side = settings.rooms, settings.views_per_room, settings.side
        self._images = torch.zeros((rooms, views, 3, side, side), dtype=torch.uint8, device=self.device)
        self._depth = torch.zeros((rooms, views, side, side), dtype=torch.float16, device=self.device)
        self._K = torch.zeros((rooms, views, 3, 3), device=self.device)
        self._poses = torch.zeros((rooms, views, 4, 4), device=self.device)
        self._sets: dict[int, np.ndarray] = {}
        """Of each filled place in the ring."""
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._drafts: deque[Future[Draft]] = deque()
        """Of the rooms from `_next` on."""

    def draw(self, scenes: int, views: int) -> Batch:
        """The next batch, of so many scenes with so many views each, on the device."""
        if not 2 <= views <= self.settings.views:
            raise ValueError(f"sets of 2 to {self.settings.views} views are prepared, not of {views}")
        self._refresh()
        rng = np.random.default_rng([self.seed, 1, self.position])
        self.position += 1
        filled = np.array(sorted(self._sets))
        rooms = filled[rng.integers(len(filled), size=scenes)]
        rows = [self._sets[room][rng.integers(len(self._sets[room]))][:views] for room in rooms]
        room, view = (torch.as_tensor(index, device=self.device) for index in (rooms[:, None], np.stack(rows)))
        depth = self._depth[room, view].float()
        return Batch(
            images=self._images[room, view].float().mul_(2 / 255).sub_(1),
            depth=depth,
            valid=depth > 0,
            intrinsics=self._K[room, view],
            camera_to_world=self._poses[room, view],
        )

    def batches(self, scenes: int, views: int) -> Iterator[Batch]:
        """Draws of one form, endlessly."""
        while True:
            yield self.draw(scenes, views)

    def state(self) -> dict[str, int]:
        """What `restore` needs to go on from here."""
        return {"position": self.position, "room": self._next}

    def restore(self, state: dict[str, int]) -> None:
        """Go on where a stream of the same settings and seed was. What the ring lacks for it is put in anew; without
        `hold`, a ring that has any rooms lacks none."""
        self.position = state["position"]
        hold, rooms = self.settings.hold, self.settings.rooms
        if not hold and self._sets:
            return
        first = self.position // hold if hold else max(0, state["room"] - rooms)
        if not first <= self._next <= first + rooms:
            self._forget()
            self._sets = {}
            self._next = first

    def close(self) -> None:
        """End the processes."""
        self._forget()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forget(self) -> None:
        for future in self._drafts:
            future.cancel()
        self._drafts.clear()

    def _refresh(self) -> None:
        """Put into the ring what is due: with `hold`, wait for it; without, take one that is ready, or the first."""
        if self.settings.hold:
            due = self.settings.rooms + self.position // self.settings.hold
            while self._next < due:
                self._put(self._take())
        elif not self._sets or self._ready():
            self._put(self._take())

    def _ready(self) -> bool:
        self._order()
        return not self._workers or self._drafts[0].done()

    def _take(self) -> Draft:
        """The room `_next`."""
        if not self._workers:
            return draft(self.settings, self.seed, self._next)
        self._order()
        return self._drafts.popleft().result()

    def _order(self) -> None:
        """Keep every process busy, and another room waiting for each."""
        if self._workers and self._pool is None:
            # Not forked: the parent has threads and maybe a GPU.
            self._pool = ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"), settle)
        while self._pool is not None and len(self._drafts) < 2 * self._workers:
            index = self._next + len(self._drafts)
            self._drafts.append(self._pool.submit(draft, self.settings, self.seed, index))

    def _put(self, made: Draft) -> None:
        """Photograph a room into the place of the oldest."""
        place, self._next = self._next % self.settings.rooms, self._next + 1
        rng = np.random.default_rng([self.seed, 2, self._next])
        poses, K = torch.from_numpy(made.camera_to_world), torch.from_numpy(made.K)
        side, samples = self.settings.side, self.settings.supersample
        light, depth = cast.render(cast.upload(made.room, self.device), poses, K, (side, side), supersample=samples)
        self._images[place] = develop(light, rng)
        self._depth[place] = depth
        self._K[place], self._poses[place] = K, poses
        self._sets[place] = made.sets


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a sheet of sets of views, one a row, from the stream.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", type=int, default=6)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--side", type=int, default=112)
    arguments = parser.parse_args()
    settings = Settings(side=arguments.side, views=arguments.views, rooms=arguments.sets, views_per_room=24)
    with Stream(settings, arguments.seed, "cpu") as stream:
        batch = stream.draw(arguments.sets, arguments.views)
    sheet = batch.images.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    Image.fromarray(((sheet + 1) * 127.5).to(torch.uint8).numpy()).save(arguments.file, quality=85)


if __name__ == "__main__":
    main()
