"""The command siglip-onnx as one executable, with the demo model inside.

pip install pyinstaller
pyinstaller --onefile --name siglip-onnx --collect-all siglip_onnx --recursive-copy-metadata siglip-onnx app.py
"""

import siglip_onnx
from siglip_onnx.cli import main

if __name__ == "__main__":
    siglip_onnx.freeze_support()  # child processes are this program too: they do their work here, and end
    main(prog_name="siglip-onnx")
