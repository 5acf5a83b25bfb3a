"""One file per search strategy, and what only that strategy needs.

In: a `Problem` and measured trials. Out: policies to measure next.
"""
