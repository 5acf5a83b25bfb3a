"""One file per number format: what it does to a tensor once its range is known.

In: a tensor and a range. Out: the nearest values that the format can hold.
"""
