"""The golden cases: inputs, and what the public reference code answered with the weights of `rule`.

Folders hold the reference's own arrays under its own names, with less of what is large: every other row of MASt3R's
descriptors, every 16th Gaussian's harmonics, pyramids and tokens of one case a kind of head.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import BackboneConfig, CroCoConfig, DUSt3RConfig, MASt3RConfig, ModelConfig, NoPoSplatConfig
from model.croco import completion_loss
from model.families import Network

FOLDER = Path(__file__).parent
SIZES = {"encoder_width": 64, "encoder_depth": 2, "encoder_heads": 4, "decoder_width": 48, "decoder_heads": 4}
SHALLOW, DEEP = SIZES | {"decoder_depth": 3}, SIZES | {"decoder_depth": 10}
CONFIGS: dict[str, BackboneConfig] = {
    "mvdust3r": ModelConfig(**SHALLOW),
    "mvdust3r_plus": ModelConfig(**SHALLOW, paths=4),
    "dust3r_linear": DUSt3RConfig(**SHALLOW, dense=False),
    "dust3r_dpt": DUSt3RConfig(**DEEP),
    "mast3r": MASt3RConfig(**DEEP),
    "noposplat": NoPoSplatConfig(**DEEP),
    "noposplat_multi": NoPoSplatConfig(**DEEP),
    "croco": CroCoConfig(**SHALLOW),
    "croco_cosine": CroCoConfig(**SHALLOW, cosine_grid=6),
}
FIELDS = {
    "pts3d": "points",
    "pts3d_in_other_view": "points",
    "conf": "confidence",
    "scale": "scale",
    "rotation": "rotation",
    "opacity": "opacity",
    "rgb": "colour",
    "desc": "descriptors",
    "desc_conf": "descriptor_confidence",
}
"""Upstream's names of what a view has -> ours."""

Compared = Iterator[tuple[str, NDArray, NDArray]]
"""An output's name, ours and the reference's."""


@dataclass(frozen=True)
class Case:
    folder: str
    name: str
    inputs: dict[str, Tensor]
    """What the network is called with."""
    golden: dict[str, NDArray]
    """The reference's arrays, under its names."""

    @property
    def views(self) -> int:
        return self.inputs["images"].shape[1]

    def compare(self, network: Network) -> Compared:
        """Run the network and pair its outputs with the reference's."""
        with torch.inference_mode():
            if self.folder.startswith("croco"):
                yield from self._completion(network)
                return
            output = network(**self.inputs)
        if self.folder.startswith("noposplat"):
            yield from self._gaussians(output)
            return
        paths = getattr(network.config, "paths", 1)
        for name, expected in self.golden.items():
            part = name.split("/")
            if len(part) == 2 and part[1] in FIELDS:
                view = int(part[0].removeprefix("view"))
                got = getattr(output, FIELDS[part[1]])[:, view].numpy()
                if part[1] == "desc":
                    got = got[:, ::2]
                expected = expected.reshape(len(got), paths, *expected.shape[1:])[:, 0]
                yield FIELDS[part[1]], got.reshape(expected.shape), expected  # some are (..., 1) there

    def _gaussians(self, output) -> Compared:
        fields = {"means": "points", "opacities": "opacity", "scales": "scale", "rotations_xyzw": "rotation"}
        for theirs, ours in fields.items():
            got = getattr(output, ours).flatten(1, 3).numpy()
            yield ours, np.roll(got, -1, axis=-1) if ours == "rotation" else got, self.golden[theirs]
        harmonics = output.harmonics.flatten(1, 3).numpy()
        if "harmonics" in self.golden:
            yield "harmonics", harmonics[:, ::16], self.golden["harmonics"]
        else:
            yield "harmonics", harmonics[..., 0], self.golden["harmonics_dc"]

    def _completion(self, network: Network) -> Compared:
        images, mask = self.inputs["images"], self.inputs["mask"]
        predicted = network(images, mask)
        yield "patches", predicted.numpy(), self.golden["pred"]
        if "loss_plain" in self.golden:
            for relative, name in ((True, "loss_norm_pix"), (False, "loss_plain")):
                loss = completion_loss(predicted, images[:, 0], mask, relative)
                yield "loss", loss.numpy()[None], self.golden[name]
            yield "completion", network.complete(images, mask)[:1].numpy(), self.golden["decoded_image_imagenet_space"]


def cases(folder: str) -> list[Case]:
    """Every case of one of CONFIGS."""
    inputs, outputs = (_arrays(folder.removesuffix("_cosine"), file) for file in ("inputs", "outputs"))
    if folder.startswith("croco"):
        images = torch.stack([torch.from_numpy(inputs[name]) for name in ("img1", "img2")], dim=1)
        called = {"images": images, "mask": torch.from_numpy(inputs["mask"])}
        cosine = folder == "croco_cosine"
        golden = {k.removeprefix("cosine/"): v for k, v in outputs.items() if k.startswith("cosine/") == cosine}
        return [Case(folder, "cosine" if cosine else "RoPE", called, golden)]
    found = []
    for name in dict.fromkeys(key.split("/")[0] for key in inputs):
        own = {k.removeprefix(f"{name}/"): torch.from_numpy(v) for k, v in inputs.items() if k.startswith(f"{name}/")}
        if folder.startswith("noposplat"):
            called = {"images": own["image"], "intrinsics": own["intrinsics"]}
        else:
            called = {"images": own["images"].transpose(0, 1).contiguous()}
        if name.startswith("manyar"):  # what is stored as landscape, but has a portrait's true shape
            height, width = own["true_shape"].transpose(0, 1).unbind(-1)
            called["portrait"] = height > width
        golden = {k.removeprefix(f"{name}/"): v for k, v in outputs.items() if k.startswith(f"{name}/")}
        found.append(Case(folder, name, called, golden))
    return found


def relative_error(field: str, got: NDArray, expected: NDArray) -> float:
    """The worst: of points |p - q| / |q|; of others the largest difference over the largest value."""
    if got.shape != expected.shape:
        raise ValueError(f"{field}: {got.shape} cannot be compared with {expected.shape}")
    if field == "points":
        return float((np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max())
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def manifest(folder: str, size: str) -> dict[str, Tensor]:
    """A checkpoint's tensors on the meta device: their upstream names, shapes and types. size: full, tiny, ..."""
    entries = json.loads((FOLDER / folder / f"manifest_{size}.json").read_text())
    return {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, shape, dtype in entries}


def _arrays(folder: str, file: str) -> dict[str, NDArray]:
    with np.load(FOLDER / folder / f"{file}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}
