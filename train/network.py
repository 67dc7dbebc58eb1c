"""What is trained, and to what end: a network of the released layout, beside it what only helps and is not kept.

Our own network is MV-DUSt3R's layout, small. Its two branches share their matrices and keep their norms and biases:
those make a view the reference, for with everything shared no view could tell which one the frame is. Written to a file
the shared tensors are there twice, and export and service need to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import checkpoint
from model.config import PATCH, BackboneConfig, ModelConfig
from model.decoder import slot_order
from model.dust3r import DUSt3R
from model.mvdust3r import MVDUSt3R
from model.output import NetworkOutput
from train.batch import Batch
from train.losses import camera_loss, confidence_loss, depth_loss, mean_distance, rendering_loss, true_points

OWN = ModelConfig(
    encoder_width=384,
    encoder_depth=6,
    encoder_heads=6,
    decoder_width=384,
    decoder_depth=3,
    decoder_heads=6,
    paths=1,
    skip_channels=8,
    gaussian_width=64,
)
"""19 million weights with shared branches. The skip CNN, whose answer counts 1e-4, is as narrow as is sensible."""
CAMERA_FIELDS = 10
"""log focal / side, two columns that become a rotation's first two, translation in the scale of the points."""
DISC, OPACITY = 0.6, 0.9
"""What a Gaussian is taught to be without pictures: this many pixels' footprints wide at its depth, round, and so
dense."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a learner says about B scenes of N views over M paths."""

    output: NetworkOutput
    """Fields (B, M, N, H, W, ...)."""
    focal: Tensor
    """(B, M, N) pixels."""
    camera_to_reference: Tensor
    """(B, M, N, 4, 4), translations in the scale of the points."""
    log_depth: Tensor
    """(B, M, N, H, W), along the z axis of each view's own camera."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What each loss counts."""

    alpha: float = 0.2
    """The logarithm of the confidence, within the loss of points, which counts 1."""
    camera: float = 0.2
    local_depth: float = 0.2
    footprint: float = 0.02
    pictures: float = 0.5
    """Where there are novel views; then `footprint` is left out."""


class Learner(nn.Module):
    """A network and two heads on its decoder's tokens that are dropped when it is done: every view's camera and its
    depth in its own frame. They ask the tokens for what pointmaps need, and learn sooner."""

    def __init__(self, network: MVDUSt3R) -> None:
        super().__init__()
        width = network.config.decoder_width
        self.network = network
        self.camera = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, CAMERA_FIELDS)
        )
        self.local_depth = nn.Linear(width, PATCH**2)
        for last in (self.camera[-1], self.local_depth):
            nn.init.normal_(last.weight, std=0.01)
            nn.init.zeros_(last.bias)
        with torch.no_grad():  # no turn: columns x and y of the identity
            self.camera[-1].bias[[1, 5]] = 1
        for head in (network.reference_head, network.head):
            head.forward = _in_float32(head.forward)
        self._tokens: Tensor | None = None
        network.decoder.register_forward_hook(self._keep)

    def forward(self, images: Tensor, references: Sequence[int]) -> Answer:
        """Images (B, N, 3, H, W) in [-1, 1] and M references, as `MVDUSt3R.every_path` takes them."""
        output = self.network.every_path(images, references)
        tokens, self._tokens = self._tokens, None
        if self.network.config.paths == 1:  # slots, the reference first
            back = slot_order(torch.tensor(references, device=images.device), images.shape[1])[1][0]
            tokens = tokens.index_select(1, back)[:, :, None]
        tokens = tokens.transpose(1, 2)
        height, width = images.shape[-2:]
        patches = self.local_depth(tokens).unflatten(-1, (PATCH, PATCH)).unflatten(3, (-1, width // PATCH))
        log_depth = patches.transpose(-3, -2).flatten(-2).flatten(3, 4).float()
        camera = self.camera(tokens.mean(dim=3)).float()
        return Answer(output, camera[..., 0].exp() * max(height, width), _poses(camera[..., 1:]), log_depth)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> None:  # noqa: ARG002
        self._tokens = tokens


def _in_float32(forward: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """A head that computes so under autocast, as upstream's do: points bear no rounding to 8 bits."""

    def wide(tokens: Tensor, images: Tensor, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        with torch.autocast(tokens.device.type, enabled=False):
            return forward(tokens.float(), images.float(), grid)

    return wide


def _poses(raw: Tensor) -> Tensor:
    """Two columns and a translation (..., 9) to rigid transforms (..., 4, 4); Zhou et al., arXiv 1812.07035, eq. 15."""
    x = F.normalize(raw[..., :3], dim=-1)
    y = F.normalize(raw[..., 3:6] - (x * raw[..., 3:6]).sum(-1, keepdim=True) * x, dim=-1)
    top = torch.stack([x, y, torch.linalg.cross(x, y), raw[..., 6:]], dim=-1)
    last = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, last], dim=-2)


def objective(
    answer: Answer, batch: Batch, references: Sequence[int], weights: Weights, novel: Batch | None = None
) -> dict[str, Tensor]:
    """The scalar `loss` of an answer, in float32, and its parts before they are weighed.

    novel: views of the same scenes that the network did not see, for path 0's Gaussians to show.
    """
    output, truth = answer.output, true_points(batch, references)
    # Of a view on average: what else is minimised weighs as much beside it whatever the number of views.
    points = (
        confidence_loss(output.points, output.confidence, truth, batch.valid, references, alpha=weights.alpha).total
        / truth.shape[2]
    )
    size = mean_distance(output.points.detach(), batch.valid[:, None])
    paths = range(len(references))
    camera = sum(
        camera_loss(answer.focal[:, m], answer.camera_to_reference[:, m], size[:, m], batch, references[m]).total
        for m in paths
    ) / len(references)
    depth = sum(depth_loss(answer.log_depth[:, m], batch.depth, batch.valid) for m in paths) / len(references)
    parts = {"points": points, "camera": camera, "local_depth": depth}
    loss = points + weights.camera * camera + weights.local_depth * depth
    if novel is not None:
        first = NetworkOutput(**{f.name: x[:, 0] for f in fields(output) if (x := getattr(output, f.name)) is not None})
        parts["pictures"] = rendering_loss(first, batch, novel, references[0]).total
        loss = loss + weights.pictures * parts["pictures"]
    else:
        parts["footprint"] = _footprint_loss(output, batch, truth, size)
        loss = loss + weights.footprint * parts["footprint"]
    return {"loss": loss, **parts}


def _footprint_loss(output: NetworkOutput, batch: Batch, truth: Tensor, size: Tensor) -> Tensor:
    """How far Gaussians are from discs as wide as their pixels, so that they show something without a loss of pictures.

    output, truth and size as of `objective`: over M paths.
    """
    true_size = mean_distance(truth, batch.valid[:, None])
    width = DISC * batch.depth / batch.intrinsics[:, :, 0, 0, None, None]
    width = (width[:, None] / true_size[..., None, None, None])[..., None]
    wide = output.scale / size[..., None, None, None, None] / width.clamp_min(1e-6) - 1
    upright = output.rotation.new_tensor([1.0, 0.0, 0.0, 0.0])
    off = wide.abs().clamp_max(10).mean(-1) + (output.rotation - upright).abs().mean(-1)
    off = off + (output.opacity - OPACITY).abs()
    seen = batch.valid[:, None].expand_as(off)
    return torch.where(seen, off, 0).sum() / seen.sum().clamp_min(1)


def own(config: ModelConfig = OWN, seed: int = 0) -> MVDUSt3R:
    """Our own network, its branches tied, with the first weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MVDUSt3R(config)
        for block in network.decoder.reference_blocks:
            nn.init.normal_(block.mlp.fc2.bias, std=0.02)  # the mark of the reference
    return tie(network)


def tie(network: MVDUSt3R) -> MVDUSt3R:
    """Let the reference's branch and the others' have one set of matrices; heads likewise."""
    pairs = [
        (network.decoder.reference_blocks, network.decoder.blocks),
        (network.reference_head, network.head),
    ]
    for reference, rest in pairs:
        for name, module in reference.named_modules():
            if isinstance(module, nn.Linear):
                module.weight = rest.get_submodule(name).weight
    return network


def from_dust3r(pair: DUSt3R, paths: int = 4) -> MVDUSt3R:
    """MV-DUSt3R+ (MV-DUSt3R, for paths 1) that starts from a DUSt3R, as the paper's did (arXiv 2412.06974, section 4).

    DUSt3R's two branches become those of the reference and of all other views. Cross-reference blocks, and the skip
    CNN, start out adding nothing: with one other view the network answers what DUSt3R does. A linear head is taken
    over; a DPT head fits no layout of this network, and a new linear one takes its place, as Gaussian heads are new.
    """
    backbone = {field.name: getattr(pair.config, field.name) for field in fields(BackboneConfig)}
    network = MVDUSt3R(ModelConfig(**backbone, paths=paths))
    network.encoder.load_state_dict(pair.encoder.state_dict())
    for part in ("embed", "reference_blocks", "blocks", "norm"):
        getattr(network.decoder, part).load_state_dict(getattr(pair.decoder, part).state_dict())
    if not pair.config.dense:
        network.reference_head.points.proj.load_state_dict(pair.reference_head.proj.state_dict())
        network.head.points.proj.load_state_dict(pair.head.proj.state_dict())
    return network


def start(path: Path, paths: int = 4) -> MVDUSt3R:
    """The network of a checkpoint to go on from: an MV-DUSt3R or MV-DUSt3R+ as it is, a DUSt3R by `from_dust3r`.

    Raises model.checkpoint.CheckpointError for others.
    """
    network = checkpoint.load(path)
    if isinstance(network, DUSt3R):
        return from_dust3r(network, paths)
    if not isinstance(network, MVDUSt3R):
        raise checkpoint.CheckpointError(f"{path.name} is {network.config.network}: training starts from MV-DUSt3R(+)")
    return network


def untied(network: MVDUSt3R, square: int, *, half: bool) -> MVDUSt3R:
    """A copy to be written: every tensor on its own, on the CPU, `square` noted as the side of its images.

    half: matrices in float16, as a file of half the size holds them; vectors and running statistics stay.
    """
    copy = MVDUSt3R(replace(network.config, square=square))
    copy.load_state_dict(network.state_dict())
    if half:
        for parameter in copy.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.half()
    return copy.eval()


def multiply_adds(config: ModelConfig, views: int, side: int, paths: int = 1) -> int:
    """Of one forward pass of `Learner.network.every_path` over one scene of `views` square images: matrix products and
    convolutions. A training step is three times that."""
    tokens = (side // PATCH) ** 2
    C, D = config.encoder_width, config.decoder_width
    encoder = tokens * (3 * PATCH**2 * C + config.encoder_depth * (12 * C**2 + 2 * tokens * C))
    # A block's products with tokens, and the attention: to its own view, and to all views or paths (masked or not).
    others = [(1, views - 1), (views - 1, views)] if views > 1 else []
    cross = sum(readers * 2 * tokens * seen * tokens * D for readers, seen in others)
    # The reference reads the others, whose keys and values are made for it once more.
    made = (views - 1) + views
    layer = views * tokens * (14 * D**2 + 2 * tokens * D) + made * tokens * 2 * D**2 + cross
    fusion = 0
    if config.paths > 1:
        fusion = views * paths * tokens * (16 * D**2 + 2 * tokens * D + 2 * paths * tokens * D)
    decoder = views * tokens * C * D + config.decoder_depth * (paths * layer + fusion)
    s = config.skip_channels
    pixels = 9 * 6 * s + 2 * 25 * s * s + 9 * 3 * s
    gaussians = 4 * D * config.gaussian_width + 11 * PATCH**2 * config.gaussian_width
    head = tokens * (4 * PATCH**2 * D + gaussians) + side * side * pixels
    return views * encoder + decoder + views * paths * head
