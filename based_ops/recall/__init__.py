"""Associative recall: how much of its context a layer gives back, for how many bytes of state.

`mqar` draws the examples, `designs` says which models there are, `train` trains many of one shape at once,
`sweep` goes through the points of a picture, and `results` keeps what was found; `tasks` asks models of
language, of real text.
"""
