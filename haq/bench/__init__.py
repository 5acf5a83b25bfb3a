"""Benchmarks whose answer is known: strategies on a table of every policy of a small trained network."""

from haq.bench.truth import GroundTruth, load_ground_truth

__all__ = ["GroundTruth", "load_ground_truth"]
