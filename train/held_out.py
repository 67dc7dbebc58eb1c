"""How good a network is on views it was never trained on: the figures that a run prints, gates on and compares.

Definitions as in `bench.accuracy`, which measures a served model in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch

from model.geometry.focal import weiszfeld_focal
from model.mvdust3r import MVDUSt3R
from model.types import Float64
from train.batch import Batch

Figures = dict[str, float]
GRID = 28
"""Rows and columns of a view's points that poses are solved on."""
CAP = 10.0
"""Of a normalised distance, as in `bench.accuracy`."""


@torch.no_grad()
def judge(network: MVDUSt3R, sets: Mapping[int, Sequence[Batch]]) -> dict[int, Figures]:
    """Figures of a network (in eval mode) for every view count: sets[N] holds batches with N views.

    nd: mean distance of points to the true ones, both clouds over their mean distance from the reference camera.
    error: median of the distance over the true point's from the reference camera, after the one best scale.
    rra_15, rta_15: shares of other views whose rotation, and direction of translation without its sign, relative to the
    reference are right to 15 degrees. As MV-DUSt3R's authors do it, the pose is solved from the points (PnP, RANSAC,
    OpenCV), with the focal length that the reference's own pointmap tells (Weiszfeld), here times what the true lenses'
    ratio is. A view without a pose is wrong.
    """
    return {views: _judge_sets(network, batches) for views, batches in sets.items()}


def _judge_sets(network: MVDUSt3R, batches: Sequence[Batch]) -> Figures:
    distances, errors, rotations, directions = [], [], [], []
    for batch in batches:
        answer = network(batch.images)
        true, valid = batch.points(0), batch.valid
        for scene in range(len(batch)):
            seen = valid[scene]
            found, right = answer.points[scene][seen].double(), true[scene][seen].double()
            normal = found / found.norm(dim=-1).mean(), right / right.norm(dim=-1).mean()
            distances.append(float((normal[0] - normal[1]).norm(dim=-1).clamp_max(CAP).mean()))
            scale = (right.norm(dim=-1) / found.norm(dim=-1).clamp_min(1e-9)).median()
            errors.append(float(((found * scale - right).norm(dim=-1) / right.norm(dim=-1)).median()))
            rotation, direction = _pose_errors(
                *(x[scene].double().cpu().numpy() for x in (answer.points, answer.confidence)),
                batch.intrinsics[scene].double().cpu().numpy(),
                np.linalg.inv(batch.camera_to_world[scene, 0].double().cpu().numpy())
                @ batch.camera_to_world[scene].double().cpu().numpy(),
            )
            rotations += rotation
            directions += direction
    return {
        "nd": float(np.mean(distances)),
        "error": float(np.median(errors)),
        "rra_15": float((np.array(rotations) < 15).mean()),
        "rta_15": float((np.array(directions) < 15).mean()),
    }


def _pose_errors(points: Float64, confidence: Float64, K: Float64, poses: Float64) -> tuple[list[float], list[float]]:
    """Degrees of rotation and of direction, one of every view but the reference, view 0.

    points (N, H, W, 3) and camera_to_world poses (N, 4, 4) in view 0's frame, confidence (N, H, W), K (N, 3, 3).
    """
    height, width = confidence.shape[1:]
    rows = np.linspace(0, height - 1, min(GRID, height)).round().astype(int)
    columns = np.linspace(0, width - 1, min(GRID, width)).round().astype(int)
    pixels = np.stack(np.meshgrid(columns + 0.5, rows + 0.5), axis=-1).reshape(-1, 2)
    points = points[:, rows][:, :, columns].reshape(len(points), -1, 3)
    confidence = confidence[:, rows][:, :, columns].reshape(len(points), -1)
    # The reference's own: points in front of it alone say something of its lens.
    front = points[0, :, 2] > 1e-6
    focal = weiszfeld_focal(points[0][front], (pixels - K[0, :2, 2])[front]) if front.any() else None
    rotations, directions = [], []
    for view in range(1, len(points)):
        lens = (focal or 0.0) * K[view, 0, 0] / K[0, 0, 0]
        sure = confidence[view] >= np.median(confidence[view])
        pose = _solve(points[view][sure], (pixels - K[view, :2, 2])[sure], lens)
        if pose is None:
            rotations.append(np.inf)
            directions.append(np.inf)
            continue
        cosine = (np.trace(pose[:3, :3].T @ poses[view, :3, :3]) - 1) / 2
        rotations.append(float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))))
        directions.append(_angle(pose[:3, 3], poses[view, :3, 3]))
    return rotations, directions


def _solve(points: Float64, pixels: Float64, focal: float) -> Float64 | None:
    """camera_to_world (4, 4) of who sees points (P, 3) at pixels (P, 2) about the principal point."""
    if not (np.isfinite(points).all() and np.isfinite(focal) and focal > 1e-6):
        return None
    try:
        solved, turn, translation, _ = cv2.solvePnPRansac(
            points,
            pixels / focal,
            np.eye(3),
            None,
            iterationsCount=200,
            reprojectionError=0.03,
            flags=cv2.SOLVEPNP_SQPNP,
        )
    except cv2.error:  # points that no camera sees
        return None
    if not solved or not np.isfinite(turn).all() or not np.isfinite(translation).all():
        return None
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(turn)[0].T
    pose[:3, 3] = -pose[:3, :3] @ translation[:, 0]
    return pose


def _angle(a: Float64, b: Float64) -> float:
    """Degrees between two directions without their sign; infinite where one is none."""
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.degrees(np.arccos(min(abs(a @ b) / length, 1.0)))) if length > 1e-12 else np.inf


def table(rows: Mapping[str, Mapping[int, Figures]]) -> str:
    """Markdown: a line for every row and view count."""
    lines = [
        "| | N | ND | median error | RRA@15 | RTA@15 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {views} | {f['nd']:.3f} | {100 * f['error']:.1f} % | {f['rra_15']:.2f} | {f['rta_15']:.2f} |"
        for name, figures in rows.items()
        for views, f in figures.items()
    ]
    return "\n".join(lines) + "\n"
