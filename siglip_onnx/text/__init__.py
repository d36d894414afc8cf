"""Texts: templates, tokenization, and the cache of their embeddings."""
