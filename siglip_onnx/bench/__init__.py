"""Benchmarks: one timer, one machine description and one report, for this engine and for every other backend.

Each configuration runs in a fresh process (:mod:`.worker`), in rounds of alternating order (:mod:`.schedule`). Its
answers, given while it is timed, are compared with the reference (:mod:`.fidelity`); :mod:`.schema` admits no row
without that comparison.
"""
