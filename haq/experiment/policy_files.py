"""Policies from files: ours, other tools', and those that an earlier run measured."""

from __future__ import annotations

from pathlib import Path

from haq.edges.documents import read_json
from haq.export.interchange.read import foreign_policy
from haq.search.journal import stored_trials
from haq.values.errors import InputError
from haq.values.network import Network
from haq.values.policy import Policy


def load_policy(path: Path, network: Network) -> Policy:
    """Read a policy file (`policy.json`, just its `policy` part, or another tool's file) for `network`.

    Raises:
        InputError: not a policy, or one for another model.
    """
    document = read_json(path)
    try:
        if (foreign := foreign_policy(document, network)) is not None:
            return foreign
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    if isinstance(document, dict) and isinstance(document.get("policy"), dict):
        if document.get("schema_version", 1) != 1:
            raise InputError(f"{path}: schema_version {document['schema_version']!r} is unknown; this haq reads 1")
        document = document["policy"]
    if not isinstance(document, dict):
        raise InputError(f"{path}: not a policy; expected an object that maps layer names to bits")
    try:
        policy = Policy.from_doc(document)
        policy.check_layers(network.layer_names)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
    return Policy({name: policy[name] for name in network.layer_names})


def load_policies(path: Path, network: Network) -> list[Policy]:
    """The policy of a policy file, or all that the run in a folder measured, the best first.

    Raises:
        InputError: none of these, or for another network.
    """
    if path.is_file():
        return [load_policy(path, network)]
    trials = [trial for trial in stored_trials(path / "trials.jsonl") if trial.measurement.ok]
    trials.sort(key=lambda trial: -trial.measurement.score)
    for trial in trials:
        try:
            trial.policy.check_layers(network.layer_names)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
    return [trial.policy for trial in trials]
