"""Verify a bundle: variants against fp32, stages against PyTorch, answers against published numbers."""
