"""Policies as configurations of other tools, both ways.

In: a policy. Out: the file that another tool reads.
"""
