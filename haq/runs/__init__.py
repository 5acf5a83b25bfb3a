"""What the commands do: a search, a front, a sweep, a ladder, a re-measurement.

In: an `Experiment`. Out: a run folder.
"""
