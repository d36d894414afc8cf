"""``python -m siglip_onnx``: the same as ``siglip-onnx``."""

from .cli import main

main(prog_name="siglip-onnx")
