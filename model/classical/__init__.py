"""Structure from motion and multi-view stereo."""

# Pillow comes before pycolmap: where pycolmap is the first to load the system's libz, that library calls into the copy
# of zlib inside pycolmap, another version, and the next PNG written anywhere in the process corrupts the heap.
import PIL.Image  # noqa: F401
