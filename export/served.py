"""The networks as they are served: the contract's tensors in, the contract's tensors out, in its order."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn

from export.contract import DECODER_FILE, ENCODER_FILE, GRAPH_FILE, OUTPUTS, PAIR_FIELDS, SPLAT_OUTPUTS
from model.config import PATCH
from model.dust3r import PairNetwork
from model.mvdust3r import MVDUSt3R
from model.noposplat import NoPoSplat


class ServedGraph(nn.Module):
    """The network with the outputs that are served. Without its colour, the exporter drops that branch."""

    def __init__(self, network: MVDUSt3R) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, references: Tensor) -> tuple[Tensor, ...]:
        output = self.network(images, references)
        return tuple(getattr(output, name) for name in OUTPUTS)


class SplatGraph(nn.Module):
    """NoPoSplat with the outputs that are served: its confidence is the opacity, its colour the harmonics' first."""

    def __init__(self, network: NoPoSplat) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, intrinsics: Tensor) -> tuple[Tensor, ...]:
        output = self.network(images, intrinsics)
        return tuple(getattr(output, name) for name in SPLAT_OUTPUTS)


class PairEncoder(nn.Module):
    """Tokens keep the grid they lie in: so the decoder knows the photos' shapes by theirs."""

    def __init__(self, network: PairNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        grid = (images.shape[-2] // PATCH, images.shape[-1] // PATCH)
        tokens: Tensor = self.network.encode(images)
        return tokens.reshape(tokens.shape[0], *grid, tokens.shape[2])


class PairDecoder(nn.Module):
    def __init__(self, network: PairNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, first_tokens: Tensor, second_tokens: Tensor) -> tuple[Tensor, ...]:
        views = (first_tokens, second_tokens)
        grids = [(tokens.shape[1], tokens.shape[2]) for tokens in views]
        answers = self.network.decode([tokens.flatten(1, 2) for tokens in views], grids)
        return tuple(answer[name] for answer in answers for name in PAIR_FIELDS[self.network.config.network])


def served_graphs(network: MVDUSt3R | PairNetwork | NoPoSplat) -> dict[str, nn.Module]:
    """The network in the graphs of its artifact, by their files."""
    if isinstance(network, PairNetwork):
        return {ENCODER_FILE: PairEncoder(network), DECODER_FILE: PairDecoder(network)}
    return {GRAPH_FILE: SplatGraph(network) if isinstance(network, NoPoSplat) else ServedGraph(network)}


def weights_sha256(network: nn.Module) -> str:
    """One hash of all tensors: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
