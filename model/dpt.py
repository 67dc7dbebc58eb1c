"""Dense Prediction Transformer (arXiv 2103.13413): tokens of four layers to a map of features, coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import BackboneConfig

LEVEL_CHANNELS = (96, 192, 384, 768)
"""Of the four maps, fine to coarse: 4, 2, 1 and 1/2 times the tokens' grid."""
CHANNELS = 256
OUTPUT_CHANNELS = 128


def hooks(depth: int) -> tuple[int, int, int, int]:
    """Layers that are read: the encoder's (0), two between and the last of a decoder of `depth` blocks."""
    return 0, depth * 2 // 4, depth * 3 // 4, depth


def upsample(x: Tensor) -> Tensor:
    """Twice the size, bilinear, corner on corner."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """The path from coarser levels, joined by this level's map, at twice the size."""

    def __init__(self, coarsest: bool) -> None:
        super().__init__()
        self.skip = None if coarsest else ResidualUnit()
        self.residual = ResidualUnit()
        self.project = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, path: Tensor, level: Tensor | None = None) -> Tensor:
        """(n, 256, h, w), both, to (n, 256, 2h, 2w)."""
        if level is not None:
            path = path + self.skip(level)
        # A 1x1 convolution and the interpolation commute: it costs a quarter before.
        return upsample(self.project(self.residual(path)))


class DPT(nn.Module):
    """The pyramid alone: what is read from its features differs from head to head."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.hooks = hooks(config.decoder_depth)
        encoder, decoder = config.encoder_width, config.decoder_width
        a, b, c, d = LEVEL_CHANNELS
        self.levels = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(encoder, a, 1), nn.ConvTranspose2d(a, a, 4, stride=4)),
                nn.Sequential(nn.Conv2d(decoder, b, 1), nn.ConvTranspose2d(b, b, 2, stride=2)),
                nn.Sequential(nn.Conv2d(decoder, c, 1)),
                nn.Sequential(nn.Conv2d(decoder, d, 1), nn.Conv2d(d, d, 3, stride=2, padding=1)),
            ]
        )
        self.reduce = nn.ModuleList(nn.Conv2d(n, CHANNELS, 3, padding=1, bias=False) for n in LEVEL_CHANNELS)
        self.fuse = nn.ModuleList(Fusion(coarsest=level == 3) for level in range(4))

    def features(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """All layers of a view, (n, S, C) each, to (n, 256, H / 2, W / 2)."""
        read = [layers[hook].transpose(1, 2).unflatten(2, grid) for hook in self.hooks]
        maps = [reduce(level(x)) for x, level, reduce in zip(read, self.levels, self.reduce, strict=True)]
        # The coarsest map is rounded up: of an odd grid its double is too large.
        path = self.fuse[3](maps[3])[..., : grid[0], : grid[1]]
        for level in (2, 1, 0):
            path = self.fuse[level](path, maps[level])
        return path


class DenseHead(DPT):
    """Channels a pixel, from the tokens alone."""

    def __init__(self, config: BackboneConfig, channels: int) -> None:
        super().__init__(config)
        self.conv1 = nn.Conv2d(CHANNELS, OUTPUT_CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(OUTPUT_CHANNELS, OUTPUT_CHANNELS, 3, padding=1)
        self.out = nn.Conv2d(OUTPUT_CHANNELS, channels, 1)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """All layers of a view, (n, S, C) each, to (n, channels, H, W)."""
        x = upsample(self.conv1(self.features(layers, grid)))
        return self.out(F.relu(self.conv2(x)))


class DenseImageHead(DPT):
    """Channels a pixel, from the tokens and, for what is finer than they are, the image (NoPoSplat)."""

    def __init__(self, config: BackboneConfig, channels: int) -> None:
        super().__init__(config)
        self.image = nn.Conv2d(3, CHANNELS, 7, padding=3)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.out = nn.Conv2d(CHANNELS, channels, 1)

    def forward(self, layers: Sequence[Tensor], image: Tensor, grid: tuple[int, int]) -> Tensor:
        """All layers of a view, (n, S, C) each, and its image (n, 3, H, W), to (n, channels, H, W)."""
        x = upsample(self.features(layers, grid)) + F.relu(self.image(image))
        return self.out(F.relu(self.conv(x)))
