"""The operators beside other libraries: time, bandwidth, arithmetic, memory.

`works` says what is measured, `floors` how fast it could be, `ours` and `peers` who does it, `measure` how it
is timed, `run` measures line by line, `report` and `plots` show it.
"""
