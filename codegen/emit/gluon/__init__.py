"""Print tile programs as Gluon for warpgroups, by a plan of places (`schedule/places.py`).

The plan says which tiles are copied ahead, shared, left operands or turned, and in which order a round's
steps are done.  The rest is derived here: layouts (`layouts.py`), who holds which index (`spelling.py`),
addresses (`addresses.py`), fences, barriers and waits (`flight.py`), the text of each step (`steps.py`), of
the loop (`rounds.py`) and of all (`kernel.py`).  What products are, and where their results lie, is a
machine's affair (`machine.py`): Hopper's, whose plans these are, or Blackwell's.
"""
