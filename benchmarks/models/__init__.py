"""Language models beside others of equal size: generating and reading prompts, and how fast it could be.

`points` says what is measured, `contenders` and `hub` who is, `cost` what it takes at least, `clock` how it
is timed; `worker` measures in a process of its own, `run` keeps what it says, `results` and `plots` show it.
"""
