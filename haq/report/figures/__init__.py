"""One file per plot: `*_data` computes the numbers, `plot_*` draws them.

In: a run that was read. Out: numbers and figures.
"""
