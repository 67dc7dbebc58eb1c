"""depth.zip: depth maps as pictures, for programs that know no numpy."""

from __future__ import annotations

import io
import json
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from model.fusion import depth_in
from model.types import Scene
from service.formats.archive import pack
from service.formats.cameras import image_path

CONVENTIONS = {
    "value": "16 bits: depth along the view's own axis = value * scale; 0: no depth",
    "scale": "the same for all views, in the units of cameras.json",
    "crop": "left, top, right, bottom edges of the map in pixels of the original photo; outside the photo is padding",
}
FULL = 65_535


def encode(scene: Scene) -> memoryview:
    """One 16-bit PNG a placed view, named as the images of colmap.zip are, and depth.json on how to read them."""
    prediction = scene.prediction
    depths = {}
    for index, camera in enumerate(scene.cameras):
        if camera is not None:
            depth = depth_in(camera, prediction.points[index])
            depths[index] = np.where((prediction.confidence[index] > 0) & (depth > 0), depth, 0.0)
    scale = max((float(depth.max()) for depth in depths.values()), default=0.0) / FULL or 1.0
    views, contents = [], {}
    for index, depth in depths.items():
        name = f"depth/{PurePosixPath(image_path(index)).stem}.png"
        # A depth that is there never becomes 0, which would say that there is none.
        values = np.where(depth > 0, np.clip(np.round(depth / scale), 1, FULL), 0).astype(np.uint16)
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "PNG", compress_level=4)
        contents[name] = buffer.getvalue()
        photo = scene.views.views[index].name
        views.append({"name": photo, "depth": name, "scale": scale, "crop": prediction.crops[index].tolist()})
    listing = {"conventions": CONVENTIONS, "views": views}
    contents["depth.json"] = json.dumps(listing, indent=1, ensure_ascii=False).encode()
    return pack(contents)
