"""Plain frozen values that every room shares.

In: nothing of `haq`. Out: formats, networks, policies, trials, errors. No torch, no pydantic.
"""
