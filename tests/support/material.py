"""Where the real tokenizers, images and texts are."""

MATERIAL = "SIGLIP_ONNX_MATERIAL"  # the environment variable that names their folder
