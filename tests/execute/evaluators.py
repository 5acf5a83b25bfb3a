"""Evaluators for workers: they import no torch, and fail in every way that there is."""

import math
import os
import signal
import time
from pathlib import Path

from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.values.trial import Measurement

POLICIES = [
    Policy({"a": Precision.parse(f"w{weight}a8"), "b": Precision.parse(f"w{other}a8")})
    for weight in range(2, 9)
    for other in range(2, 9)
]


def score(policy):
    """What the evaluators find: any number that tells policies apart."""
    return math.sin(policy["a"].weight.bits * 10.0 + policy["b"].weight.bits)


class Scripted:
    """Scores every policy; `odd` says what else happens: policy key -> what. Notes each evaluation in a folder."""

    def __init__(self, payload):
        self.folder = Path(payload["folder"])
        self.odd = payload.get("odd", {})
        self.seconds = payload.get("seconds", 0.0)

    def __call__(self, policy):
        started = len(list(self.folder.glob(f"{policy.key}.*.start")))
        (self.folder / f"{policy.key}.{os.getpid()}.{time.time_ns()}.start").touch()
        what = self.odd.get(policy.key, "")
        if what == "memory":
            raise MemoryError("no more")
        if what == "input":
            raise InputError("evaluator.metric: is wrong")
        if what == "kill" or (what == "kill once" and not started):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            time.sleep(600)
        time.sleep(self.seconds)
        value = math.nan if what == "nan" else score(policy)
        (self.folder / f"{policy.key}.{os.getpid()}.{time.time_ns()}.done").touch()
        return Measurement(value, "ptq", 0.0)


def finished_evaluations(folder):
    """Policy key -> how often it was evaluated to the end."""
    keys = [path.name.partition(".")[0] for path in Path(folder).glob("*.done")]
    return {key: keys.count(key) for key in keys}


class Priced:
    """Every policy costs the same and is within budget."""

    def costs(self, policy):
        return {"bops": 1.0}

    def violation(self, policy):
        return {}
