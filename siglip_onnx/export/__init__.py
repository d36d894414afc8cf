"""From a Hugging Face checkpoint to a bundle: needs the ``[export]`` extra, never PyTorch."""
