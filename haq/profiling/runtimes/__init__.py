"""One file per runtime that can be timed.

In: a quantized model and a policy. Out: seconds per inference.
"""
