"""Evaluate a model on labelled images and captions: data sets, protocols, metrics with intervals, published numbers."""
