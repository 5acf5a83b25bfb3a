"""The schema of `result.json`, reading a run folder, the verdict.

In: files of a run. Out: typed values for the report and for comparisons.
"""
