"""Tuning: measure candidates of the search space and keep the best as records that `generate` reads.

`search.py` decides what to try of programs and `plans.py` of launch plans, both by the trials of `trials.py`;
`worker.py` is the process that checks and times one, `measure.py` is how, and `results.py` makes records of
what was found.  Nothing here runs in a user's process.
"""
