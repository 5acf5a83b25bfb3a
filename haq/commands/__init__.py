"""The command line: arguments in, one call, tables out.

In: what the user types. Out: text, JSON, an exit code.
"""
