"""One file per kind of cost model, with the section of a profile that it reads.

In: a hardware profile, a layer, a precision. Out: latency, energy, bytes.
"""
