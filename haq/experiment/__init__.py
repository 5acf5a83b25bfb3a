"""From an experiment file to its pieces: model, data, device, space, evaluators, the problem.

In: a TOML file. Out: an `Experiment`, each piece built when it is first asked for.
"""
