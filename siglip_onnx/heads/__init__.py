"""Heads fitted to data: calibrated probabilities, few-shot classifiers, and scores of stored vectors."""
