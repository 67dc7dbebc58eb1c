"""A pairwise network on any number of photos: every photo encoded once, pairs decoded, their pointmaps aligned.

DUSt3R's by gradient descent on all points, MASt3R's by what its descriptors match.

Without torch, as `export.sessions`, which opens these models.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np

from export.contract import (
    DECODER_FILE,
    DIVISOR,
    ENCODER_FILE,
    PAIR_FIELDS,
    Description,
    choose_pairs,
    decoder_outputs,
)
from export.runtime import Graph, check_finite, normalised, ramps, refused_for_memory
from model.geometry.alignment import Alignment, Pair, align, best_confidence, clear_air, fit_similarity, linked
from model.geometry.crop import long_side_crop_in_original, square_crop_in_original
from model.geometry.focal import weiszfeld_focal
from model.geometry.matching import match_both_ways
from model.geometry.poses import (
    INLIER_SHARE_OF_FOCAL,
    camera_key,
    intrinsics,
    invert_rigid,
    pixel_centres,
    solve_focal,
    solve_pose,
)
from model.geometry.sparse_alignment import Matches, align_matches
from model.types import (
    Camera,
    Float32,
    Float64,
    ModelInfo,
    Prediction,
    Progress,
    ReconstructionError,
    UInt8,
    View,
    Views,
)

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

PAIRS_AT_ONCE = {"cpu": 1, "cuda": 8}
"""Pairs a pass, at most: one fills a CPU."""
REHEARSAL = (48, 64)
"""Height and width of the images that warm up the graphs."""
SAMPLE = 4000
"""Pixels of a pointmap, at most, that are asked whether they agree with a camera."""
DOUBTFUL = 0.3
"""A view whose camera a smaller share of the points agrees with is doubtful."""


class PairSession:
    """A pairwise network: a `model.types.Model`. `run` may be called from several threads."""

    def __init__(self, description: Description, graphs: Mapping[str, Graph], info: ModelInfo) -> None:
        self.info = info
        self._description = description
        self._encoder = graphs[ENCODER_FILE]
        self._decoder = graphs[DECODER_FILE]
        self._outputs = decoder_outputs(description.network)
        self._matches = "descriptors" in PAIR_FIELDS[description.network]

    def run(self, batch: Sequence[Views], progress: Progress) -> list[Prediction | ReconstructionError]:
        """One job after the other; see `model.types.Model.run`. Stages told: forward, alignment.

        A job that the memory which is free does not do for is refused, saying how many views it does for.
        """
        for views in batch:
            if not self.info.min_views <= len(views) <= self.info.max_views or not 0 <= views.reference < len(views):
                raise ValueError(f"{len(views)} views with reference {views.reference} are beyond {self.info.name}")
        return [self._answer(views, progress) for views in batch]

    def warm_up(self) -> None:
        """A real pass of two small images. Raises RuntimeError if anything of its answer is not finite."""
        first, second = (self._encode(image) for image in ramps(*REHEARSAL, 2))
        outputs = self._decode([first], [second])
        check_finite(outputs, self.info)

    def _answer(self, views: Views, progress: Progress) -> Prediction | ReconstructionError:
        if refusal := refused_for_memory(self._description, len(views), self.info.device):
            return refusal
        images = [self._crop(view) for view in views.views]
        started = time.monotonic()
        try:
            pairs, matches = self._see(images, progress)
            seen = time.monotonic()
            prediction = reconstruct(views, images, self._boxes(views), pairs, matches, progress)
        except ReconstructionError as error:
            return error
        seconds = {"pairs": seen - started, "alignment": time.monotonic() - seen}
        return replace(prediction, details={"pairs": len(pairs), "seconds": seconds})

    def _see(self, images: Sequence[UInt8], progress: Progress) -> tuple[list[Pair], list[Matches] | None]:
        """What the network says of the chosen pairs of images (H, W, 3), whose sizes may differ.

        And which of their pixels it matches; None from a network without descriptors.
        """
        chosen = choose_pairs(len(images))
        done = 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            progress("forward", done / (len(images) + len(chosen)))

        def heartbeat(_: float = 0.0) -> None:
            told(0)

        heartbeat()
        tokens = []
        for image in images:
            tokens.append(self._encode(image, heartbeat))
            told(1)
        alike = defaultdict(list)
        for i, j in chosen:
            alike[tokens[i].shape, tokens[j].shape].append((i, j))
        pairs, matches = [], []
        at_once = PAIRS_AT_ONCE[self.info.device]
        for group in alike.values():
            for start in range(0, len(group), at_once):
                part = group[start : start + at_once]
                first, second = ([view[side] for view in part] for side in (0, 1))
                outputs = self._decode([tokens[i] for i in first], [tokens[j] for j in second], heartbeat)
                for (i, j), *fields in zip(part, *outputs, strict=True):
                    answer = dict(zip(self._outputs, fields, strict=True))
                    pairs.append(
                        Pair(
                            i,
                            j,
                            answer["first_points"],
                            answer["second_points"],
                            answer["first_confidence"],
                            answer["second_confidence"],
                        )
                    )
                    if self._matches and i < j:
                        # At once: the descriptors of all pairs would take far more memory than their points.
                        found = match_both_ways(
                            answer["first_descriptors"],
                            answer["second_descriptors"],
                            answer["first_descriptor_confidence"],
                            answer["second_descriptor_confidence"],
                            heartbeat=heartbeat,
                        )
                        matches.append(Matches(i, j, *found))
                told(len(part))
        return pairs, matches if self._matches else None

    def _encode(self, image: UInt8, heartbeat: Callable[[float], None] = lambda _: None) -> Float32:
        """One image (H, W, 3) to its tokens (rows, columns, C)."""
        (tokens,) = self._encoder.run([normalised(image[None])], heartbeat)
        return cast(Float32, tokens[0])

    def _decode(
        self, first: Sequence[Float32], second: Sequence[Float32], heartbeat: Callable[[float], None] = lambda _: None
    ) -> list[Float32]:
        """Tokens of the views of B pairs, of one shape a side, to the decoder's outputs."""
        return self._decoder.run([np.stack(first), np.stack(second)], heartbeat)

    def _crop(self, view: View) -> UInt8:
        """What the network sees of a photo."""
        crop, square, long_side = view.crop, self.info.square, self.info.long_side
        if crop is None or crop.ndim != 3:
            raise ValueError("a view has no crop. This is a bug.")
        height, width, _ = crop.shape
        fits = (height, width) == (square, square) if square else max(height, width) == long_side
        if not fits or height % DIVISOR or width % DIVISOR:
            raise ValueError(f"a view's crop is {crop.shape} for a network of {square or long_side}. This is a bug.")
        return crop

    def _boxes(self, views: Views) -> list[Box]:
        """What the network sees of each photo: left, top, right, bottom in pixels of the original."""
        if self.info.square is not None:
            return [square_crop_in_original(*view.original_size, self.info.square) for view in views.views]
        return [long_side_crop_in_original(*view.original_size, self.info.long_side or 0) for view in views.views]


def reconstruct(
    views: Views,
    images: Sequence[UInt8],
    boxes: Sequence[Box],
    pairs: Sequence[Pair],
    matches: Sequence[Matches] | None,
    progress: Progress,
) -> Prediction:
    """One scene of what pairs of views show (DUSt3R, arXiv 2312.14132, section 3.3; MASt3R-SfM, arXiv 2409.19152).

    images: N times (H, W, 3), what the network saw; boxes: where that lies in the original photos; pairs and matches:
    as the network answered them; without matches the points alone are aligned. Photos of one camera share one focal
    length where `views.shared_focal`, else every photo has its own; EXIF's, where there is one, is the start.
    Raises ReconstructionError where the pairs hold numbers that are not finite, or do not make a scene.
    """
    pixels = [
        pixel_centres(np.array(box), *image.shape[:2]) - np.array(view.original_size) / 2
        for view, image, box in zip(views.views, images, boxes, strict=True)
    ]
    tick = partial(progress, "alignment")
    tick(0.0)
    focals = [view.exif_focal for view in views.views]
    lenses = [camera_key(view) if views.shared_focal else index for index, view in enumerate(views.views)]
    if matches is not None:
        linked(pairs, pixels)
        scene = align_matches(pairs, matches, pixels, tick, focals=focals, cameras=lenses)
    elif len(views) == 2:
        scene = _two_views(pairs, pixels, one_camera=lenses[0] == lenses[1])
    else:
        scene = align(pairs, pixels, tick, focals=focals, cameras=lenses)
    scene = scene.seen_from(views.reference)
    shares = agreement(scene, pairs)
    cameras = tuple(
        Camera(intrinsics(focal, view.original_size), pose, share)
        for focal, view, pose, share in zip(
            scene.focals.tolist(), views.views, scene.camera_to_world, shares.tolist(), strict=True
        )
    )
    unsure = [view.name for view, share in zip(views.views, shares, strict=True) if share < DOUBTFUL]
    tick(1.0)
    return Prediction(
        *_padded(images, boxes, scene.points, clear_air(scene, lambda: tick(1.0))),
        cameras=cameras,
        low_confidence=bool(unsure),
        warnings=(f"The cameras of these photos are doubtful: {', '.join(unsure)}.",) if unsure else (),
    )


def _two_views(pairs: Sequence[Pair], pixels: Sequence[Float64], one_camera: bool) -> Alignment:
    """Both views as the surer of the two answers has them: nothing is left to be aligned.

    The focal lengths are those of the views' own pointmaps, or their mean if there is `one_camera`; the second camera
    stands where it sees its points (PnP).
    """
    pairs = linked(pairs, pixels)
    pair = max(pairs, key=lambda pair: float(pair.confidence_i.mean() * pair.confidence_j.mean()))
    grids = [pixels[view].reshape(-1, 2) for view in (pair.i, pair.j)]
    points, others = (cloud.reshape(-1, 3).astype(np.float64) for cloud in (pair.points_i, pair.points_j))
    sure = pair.confidence_j.ravel().astype(np.float64)
    focals = [weiszfeld_focal(points, grids[0]), solve_focal(others, grids[1], sure)]
    for mirrored in pairs:
        if mirrored.i == pair.j:
            focals[1] = weiszfeld_focal(mirrored.points_i.reshape(-1, 3), grids[1])
    known = [focal for focal in focals if focal is not None and focal > 0]
    if one_camera and known:
        focals = [float(np.mean(known))] * 2
    solved = solve_pose(others, grids[1], focals[1], sure) if focals[1] is not None and focals[1] > 0 else None
    if focals[0] is None or focals[0] <= 0 or solved is None:
        raise ReconstructionError(
            "The network finds no place from which the second photo could have been taken.",
            "Take the photos from places nearer to each other, or add photos from between.",
        )
    poses = np.stack([np.eye(4), solved[0]])
    local = (others - poses[1, :3, 3]) @ poses[1, :3, :3]
    order = [pair.i, pair.j]
    depths = [z.reshape(pixels[view].shape[:2]) for view, z in zip(order, (points[:, 2], local[:, 2]))]
    best = best_confidence(pairs, 2)
    # What lies behind its own camera is nowhere.
    confidence = [np.where(depth > 0, best[view], 0).astype(np.float32) for view, depth in zip(order, depths)]
    place = np.argsort(order)
    return Alignment(
        camera_to_world=poses[place],
        focals=np.array(focals, np.float64)[place],
        depths=tuple(np.maximum(depths[k], 1e-6).astype(np.float32) for k in place),
        confidence=tuple(confidence[k] for k in place),
        pixels=tuple(pixels),
        pair_to_world=np.eye(4)[None],
        losses=np.zeros(0),
    )


def agreement(scene: Alignment, pairs: Sequence[Pair]) -> Float64:
    """(N,) the share, by weight, of what pairs say of a view from another, that its camera sees where it should.

    Each pair is moved to where its first view lies in the scene; its second view's points are then seen by that one's
    camera, within INLIER_SHARE_OF_FOCAL. Weights are the logarithms of the confidence.
    """
    points = scene.points
    agreeing, all_ = np.zeros(len(points)), np.full(len(points), 1e-12)
    for pair in pairs:
        own, other = (
            slice(None, None, -(-confidence.size // SAMPLE)) for confidence in (pair.confidence_i, pair.confidence_j)
        )
        to_scene = fit_similarity(
            pair.points_i.reshape(-1, 3)[own].astype(np.float64),
            points[pair.i].reshape(-1, 3)[own].astype(np.float64),
            np.log(np.maximum(pair.confidence_i.ravel()[own], 1)),
        )
        to_camera = invert_rigid(scene.camera_to_world[pair.j]) @ to_scene
        local = pair.points_j.reshape(-1, 3)[other] @ to_camera[:3, :3].T + to_camera[:3, 3]
        weight = np.log(np.maximum(pair.confidence_j.ravel()[other], 1))
        focal, pixels = scene.focals[pair.j], scene.pixels[pair.j].reshape(-1, 2)[other]
        ahead = local[:, 2] > 0
        miss = np.linalg.norm(focal * local[ahead, :2] / local[ahead, 2:] - pixels[ahead], axis=1)
        agreeing[pair.j] += weight[ahead][miss < INLIER_SHARE_OF_FOCAL * focal].sum()
        all_[pair.j] += weight.sum()
    shares: Float64 = agreeing / all_
    return shares


def _padded(
    images: Sequence[UInt8], boxes: Sequence[Box], points: Sequence[Float32], confidence: Sequence[Float32]
) -> tuple[Float32, Float32, UInt8, Float64]:
    """Points, confidence, colours and boxes of all views on grids of one size, each in its upper left corner."""
    H, W = (max(image.shape[axis] for image in images) for axis in (0, 1))
    shape = (len(images), H, W)
    all_points, all_confidence = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32)
    rgb, crops = np.zeros((*shape, 3), np.uint8), np.zeros((len(images), 4))
    for view, (image, (left, top, right, bottom)) in enumerate(zip(images, boxes, strict=True)):
        h, w, _ = image.shape
        all_points[view, :h, :w], all_confidence[view, :h, :w] = points[view], confidence[view]
        rgb[view, :h, :w] = image
        crops[view] = left, top, left + (right - left) * W / w, top + (bottom - top) * H / h
    return all_points, all_confidence, rgb, crops
