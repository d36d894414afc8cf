"""The export command from a checkout: ``python scripts/export.py CHECKPOINT OUT``, as ``siglip-onnx export``."""

import sys

from siglip_onnx.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
