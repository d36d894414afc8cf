"""This machine: files, processes, CPU. Imports nothing of the package but errors."""
