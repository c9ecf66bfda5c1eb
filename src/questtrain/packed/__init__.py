"""The folder of ``format=packed``: a model in the bits that it needs (docs/export-packed.md)."""

from questtrain.packed.folder import DTYPES, PackedFolder, Skeleton, is_packed_folder
from questtrain.packed.manifest import MANIFEST, VERSION, Manifest

__all__ = [
    "DTYPES",
    "MANIFEST",
    "VERSION",
    "Manifest",
    "PackedFolder",
    "Skeleton",
    "is_packed_folder",
]
