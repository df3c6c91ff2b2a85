"""What a mixer remembers of the tokens before a query, and how that enters, is read, and is differentiated.

One kind of memory a module: sums of features (`sums`), the keys of a window (`window`), and both together
(`hybrid`, `hybrid_added`, `hybrid_windowed`).  A program says which
tokens it takes in which order; the algebra is written here.
"""
