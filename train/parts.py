"""A safetensors file as several smaller ones, and back: for places that take no large files.

    python -m train.parts join FOLDER model.safetensors      the parts in FOLDER, made whole again

Every part is a safetensors file of its own, with whole tensors; the index beside them, under the name and in the form
that Hugging Face's libraries use, tells which part holds which, and the SHA-256 of the whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX_FILE = "model.safetensors.index.json"
JOIN = "python -m train.parts join {folder} model.safetensors"


class PartsError(Exception):
    """These tensors cannot be split, or these parts not joined, for the reason given."""


def split(path: Path, folder: Path, megabytes: float) -> list[Path]:
    """Write the tensors of the file `path` to `folder`, in parts of at most so many MB (10^6 bytes) and an index.

    Raises PartsError for a tensor that is larger, before anything is written.
    """
    tensors, metadata = _read(path)
    groups: list[dict[str, Tensor]] = [{}]
    room = limit = int(megabytes * 1e6) - 100_000  # the head of a part, which names its tensors
    for name, tensor in sorted(tensors.items()):
        size = tensor.numel() * tensor.element_size()
        if size > limit:
            raise PartsError(f"{name} alone has {size / 1e6:.1f} MB, and parts are to have at most {megabytes:g}")
        if size > room:
            groups.append({})
            room = limit
        groups[-1][name] = tensor
        room -= size
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model-{index + 1:05}-of-{len(groups):05}.safetensors" for index in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        save_file(group, folder / name, metadata)
        (folder / name).chmod(path.stat().st_mode)
    index = {
        "metadata": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "join": JOIN.format(folder=folder.name)},
        "weight_map": {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def join(folder: Path, path: Path) -> None:
    """Write the file that the parts in `folder` were made of. Raises PartsError for parts that are not whole."""
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise PartsError(f"{INDEX_FILE} names files outside of {folder}")
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, str] = {}
        for name in names:
            part, metadata = _read(folder / name)
            tensors |= part
        wanted = index["metadata"]["sha256"]
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise PartsError(f"{folder} holds no whole set of parts: {error}") from None
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata)
    if hashlib.sha256(partial.read_bytes()).hexdigest() != wanted:
        partial.unlink()
        raise PartsError(f"the parts in {folder} are not those of the file that {INDEX_FILE} tells of")
    partial.chmod((folder / INDEX_FILE).stat().st_mode)
    partial.replace(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a file of its parts.")
    parser.add_argument("command", choices=["join"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    try:
        join(arguments.folder, arguments.file)
    except PartsError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
