"""The exact solver.

In: a `Problem`. Out: the optimal assignments with a proven bound, or the least achievable values.
"""
