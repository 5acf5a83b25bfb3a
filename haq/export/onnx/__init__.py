"""Lowering to ONNX, pass by pass, and running the file.

In: a `ModelState`. Out: an ONNX model that computes what was searched.
"""
