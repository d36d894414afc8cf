"""The export command from a checkout: ``python scripts/export.py CHECKPOINT OUT``, as ``siglip-onnx export``."""

from siglip_onnx.cli.export import export

if __name__ == "__main__":
    export()
