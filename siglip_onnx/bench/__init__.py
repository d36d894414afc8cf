"""Benchmarks: one timer, one machine description, one report, for this engine and for every other.

Each configuration runs in a fresh process (:mod:`.worker`), in rounds of alternating order (:mod:`.schedule`); what it
answered while it was timed is compared with the reference (:mod:`.fidelity`), without which there is no row
(:mod:`.schema`).
"""
