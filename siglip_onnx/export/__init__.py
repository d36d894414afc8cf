"""From a Hugging Face checkpoint to a bundle: needs the ``[export]`` extra, never PyTorch."""

# How near to fp32 every sample embedding of a variant must be, unless told otherwise; 4 bits cannot be nearer.
MIN_COSINE = {"fp32": 0.999, "fp16": 0.999, "int8": 0.999, "q4": 0.95}
