"""From a Hugging Face checkpoint to a bundle: needs the ``[export]`` extra, never PyTorch."""

MIN_COSINE = 0.999  # how near to fp32 every sample embedding of a variant must be, unless told otherwise
