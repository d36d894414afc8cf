"""This machine: CPU, threads, forks, workers, files and the cache folder. Imports nothing of the package but errors."""
