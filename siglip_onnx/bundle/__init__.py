"""A bundle: the model folder that ``export`` writes and the runtime reads."""

from .folder import Bundle, open_bundle, verify_folder
from .integrity import FileFacts, file_facts
from .manifest import Manifest, Variant, check_head, graph_path, read_manifest

__all__ = [
    "Bundle",
    "FileFacts",
    "Manifest",
    "Variant",
    "check_head",
    "file_facts",
    "graph_path",
    "open_bundle",
    "read_manifest",
    "verify_folder",
]
