"""The search problem: space, budgets, dense cost tables.

In: network, cost model, sensitivities. Out: `Problem`, which prices and repairs policies; a file, too.
"""
