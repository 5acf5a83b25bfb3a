"""Any device: your own script is given a policy and answers with milliseconds."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from collections.abc import Mapping
from functools import partial

from haq.profiling.runtimes.base import Prepared
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy

_SHOWN = 200


class ScriptRuntime:
    """Runs a command for each measurement, without a shell.

    Its standard input is `{"schema_version": 1, "policy": {layer: {"weight_bits": ..., ...}}}`, as in `policy.json`;
    the last line of its standard output is the milliseconds of one inference. Warming up and repeating is its affair.

    Args:
        command: with its arguments, such as `ssh board ./time_policy`.
        low: the precision that is measured against float.
        timeout: seconds for one call.

    Raises:
        InputError: `low` is no precision.
    """

    name, package = "command", ("", "")

    def __init__(self, command: str, *, low: str, timeout: float) -> None:
        self._command, self._timeout = command, timeout
        try:
            self.low = Precision.parse(low)
        except ValueError as error:
            raise InputError(f"--low: {error}") from error

    @property
    def title(self) -> str:
        return f"command: {self._command}"

    def prepare(self, policy: Policy) -> Prepared:
        return Prepared(partial(self._time, policy), {}, repeats_itself=True)

    def layer_times(self, policy: Policy, *, runs: int) -> Mapping[str, float] | None:
        return None

    def _time(self, policy: Policy) -> float:
        document = json.dumps({"schema_version": 1, "policy": policy.to_doc()})
        label = f"--command {self._command}"
        try:
            done = subprocess.run(
                shlex.split(self._command), input=document, capture_output=True, text=True, timeout=self._timeout
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{label}: no answer within {self._timeout:g} seconds; raise --timeout") from error
        except OSError as error:
            raise InputError(f"{label}: cannot be started: {error.strerror or error}") from error
        if done.returncode:
            raise InputError(f"{label}: ended with code {done.returncode}: {_last_line(done.stderr)}")
        try:
            ms = float(_last_line(done.stdout))
        except ValueError:
            ms = math.nan
        if not 0 < ms < math.inf:
            raise InputError(
                f"{label}: the last line of its output is {_last_line(done.stdout)!r}; write milliseconds there"
            )
        return ms


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:_SHOWN] if lines else "(nothing)"
