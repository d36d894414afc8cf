"""Export a checkpoint to a bundle; needs the ``[export]`` extra, never PyTorch."""
