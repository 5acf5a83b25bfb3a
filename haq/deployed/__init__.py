"""What deploying a quantized model needs, as plain values, and the check that a deployed model computes the same.

In: a quantized model and a policy. Out: a `ModelState`; agreement with the exported file.
"""
