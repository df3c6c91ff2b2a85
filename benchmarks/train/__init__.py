"""Language models trained beside one another at equal weights, tokens and text, and how fast training is.

`text` gathers text that any machine has, `contenders` says who is trained, `run` trains and times them point
by point, `results` keeps and shows what was found.
"""
