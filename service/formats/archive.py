"""Zip archives of result files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping


def pack(contents: Mapping[str, bytes]) -> memoryview:
    """Files by name, uncompressed (pictures are already), in one date: equal contents give equal archives."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return buffer.getbuffer()
