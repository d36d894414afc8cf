"""The measurements of bulk jobs, one module each; ``benchmarks/bulk.py`` runs them."""
