"""Re-measuring: the optimiser finds where the cost model flatters, and a measurement takes it back."""

import itertools
from pathlib import Path

import pytest
from known_device import LOW, KnownDevice

from haq import Experiment, InputError, Policy, run_experiment
from haq.edges.progress import Silent
from haq.problem.problem import Problem
from haq.profiling import machine as command
from haq.profiling.machine import Settings, profile_machine
from haq.profiling.policies import anchors, mixed_policies
from haq.profiling.runtimes.base import Prepared
from haq.runs import remeasure
from haq.solve.solve import solve

pytest.importorskip("onnxruntime")
QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
BUDGET = 5.0
FORMATS = [("fp32", 32, 1.0, 0.0), ("int8", 8, 0.4, 1.0)]


def toy() -> Problem:
    """Six layers: float costs 1 ms and loses nothing, int8 costs 0.4 ms and loses more, the later the layer."""
    layers = [
        {
            "name": f"layer{index}",
            "choices": [
                {
                    "weight_bits": bits,
                    "activation_bits": bits,
                    "weight_format": name,
                    "activation_format": name,
                    "sensitivity": loss * (1 + index),
                    "costs": {"latency_ms": ms},
                }
                for name, bits, ms, loss in FORMATS
            ],
        }
        for index in range(6)
    ]
    return Problem.from_doc(
        {"schema_version": 1, "layers": layers, "budgets": {"latency_ms": BUDGET}, "objective": "sensitivity"}
    )


class Stopwatch:
    """The truth: predictions, and `extra` ms more where the first layer is int8 and the second is not."""

    def __init__(self, problem: Problem, extra: float) -> None:
        self.problem, self.extra, self.asked = problem, extra, []

    def measure(self, policies) -> list[float]:
        self.asked += [policy.key for policy in policies]
        return [self.ms(policy) for policy in policies]

    def ms(self, policy) -> float:
        first, second = (policy[name].weight.name for name in ("layer0", "layer1"))
        return self.problem.costs(policy)["latency_ms"] + self.extra * (first == "int8" and second == "fp32")


def best(problem: Problem, true, bound: float) -> float:
    """The least sensitivity of all 64 policies that really keep to the bound."""
    policies = [
        Policy({name: problem.choices(name)[i] for name, i in zip(problem.layers, pick, strict=True)})
        for pick in itertools.product((0, 1), repeat=6)
    ]
    return min(problem.costs(policy)["sensitivity"] for policy in policies if true(policy) <= bound)


def test_predictions_that_hold_leave_the_budget_alone():
    problem = toy()
    found, state = remeasure.remeasure(problem, Stopwatch(problem, 0.0), count=2, guard_percent=5.0, show=Silent())
    assert found.budgets["latency_ms"] == pytest.approx(BUDGET)
    assert state.stable


def test_until_it_is_measured_the_guard_band_counts():
    problem = toy()
    clock = Stopwatch(problem, 0.0)
    remeasure.remeasure(problem, clock, count=1, guard_percent=50.0, show=Silent())
    first = clock.asked[0]
    costs = [problem.costs(problem.policy(pick))["latency_ms"] for pick in itertools.product((0, 1), repeat=6)]
    keys = [problem.policy(pick).key for pick in itertools.product((0, 1), repeat=6)]
    assert costs[keys.index(first)] <= BUDGET / 1.5


def test_what_is_flattered_is_not_chosen():
    problem = toy()
    clock = Stopwatch(problem, 0.5)
    found, state = remeasure.remeasure(problem, clock, count=3, guard_percent=1.0, show=Silent())
    answer = found.policy(solve(found).assignments[0])
    assert clock.ms(answer) <= BUDGET
    assert state.measured[answer.key] == pytest.approx(clock.ms(answer))
    assert best(problem, clock.ms, BUDGET) <= problem.costs(answer)["sensitivity"]


def test_where_nothing_more_can_be_proposed_what_was_confirmed_stays():
    """All but the first proposal take ten times as long as predicted: the corrected budget is infeasible."""
    problem = toy()

    class Moody(Stopwatch):
        def ms(self, policy) -> float:
            predicted = self.problem.costs(policy)["latency_ms"]
            return predicted if policy.key in self.asked[:1] else 10 * predicted

    clock = Moody(problem, 0.0)
    found, state = remeasure.remeasure(problem, clock, count=1, guard_percent=20.0, show=Silent())
    within = [key for key, ms in state.measured.items() if ms <= BUDGET]
    answers = {found.policy(assignment).key for assignment in solve(found).assignments}
    assert within
    assert answers
    assert answers <= set(within)


class Restless:
    """Runs policies of `KnownDevice` at a clock that is another one each second."""

    package, low = ("", ""), LOW

    def __init__(self, device: KnownDevice) -> None:
        self.device, self.speed = device, 1.0

    def prepare(self, policy) -> Prepared:
        ms = self.device.ms(policy)
        return Prepared(lambda: ms / self.speed, {})


def test_what_is_timed_at_a_higher_clock_is_not_faster(tmp_path, monkeypatch):
    monkeypatch.setattr("haq.profiling.timing._SLICE_SECONDS", 0.0)
    experiment = Experiment.load(QUICKSTART)
    device = KnownDevice(experiment)
    runtime, names = Restless(device), experiment.network.layer_names
    mixed, path = mixed_policies(names, LOW, 4, seed=0), tmp_path / "latency.json"
    ends = {policy: device.ms(policy) for policy in anchors(names, LOW)}
    watch = remeasure.Stopwatch(lambda: runtime, path, ends, threads=1)
    runtime.speed = 1.25
    assert watch.measure(mixed[:2]) == pytest.approx([device.ms(policy) for policy in mixed[:2]])
    assert watch.pace == pytest.approx(0.8)
    runtime.speed = 0.5
    resumed = remeasure.Stopwatch(lambda: runtime, path, ends, threads=1)
    assert resumed.measure(mixed) == pytest.approx([device.ms(policy) for policy in mixed])
    assert resumed.pace == pytest.approx(2.0)


class Slower(KnownDevice):
    """The device that was profiled, but mixed policies take 8 % more than they should, and now everything 10 %."""

    def true_ms(self, policy) -> float:
        return super().ms(policy) * (1.08 if len(set(policy.values())) > 1 else 1.0)

    def prepare(self, policy) -> Prepared:
        return Prepared(lambda: 1.1 * self.true_ms(policy), {})


def test_a_search_ends_with_a_measured_latency(tmp_path, monkeypatch):
    version = __import__("onnxruntime").__version__
    monkeypatch.setattr("haq.profiling.timing._SLICE_SECONDS", 0.0)
    monkeypatch.setattr(KnownDevice, "package", ("onnxruntime", version))
    plain = Experiment.load(QUICKSTART)
    monkeypatch.setattr(command, "open_runtime", lambda *_, **__: KnownDevice(plain))
    monkeypatch.setattr(remeasure, "open_runtime", lambda *_, **__: Slower(plain))
    profile = tmp_path / "mine.toml"
    profile_machine(plain, profile, settings=Settings(policies=14, rounds=2), resume=False, command="", show=Silent())
    overrides = [
        f"device.profile='{profile}'",
        "space.weights=['int8', 'fp32']",
        "space.activations=['int8', 'fp32']",
        "budgets={latency_ms=5.5}",
        "search.remeasure=2",
        "search.max_trials=3",
    ]
    folder, result = run_experiment(Experiment.load(QUICKSTART, overrides=overrides), out=tmp_path / "run")
    measured = result["answer"]["measured_latency_ms"]
    assert measured == pytest.approx(Slower(plain).true_ms(Policy.from_doc(result["answer"]["policy"])), rel=1e-3)
    assert measured <= result["budgets"]["latency_ms"] == 5.5
    assert result["remeasured"]["corrected"] == pytest.approx(5.5 / 1.08, rel=0.03)
    assert f"Latency measured end to end: {measured:.4g} ms of at most 5.5 (predicted: " in result["verdict"]
    assert "That is at the profile's pace: now this machine takes +10 %" in result["verdict"]
    assert result["remeasured"]["pace"] == pytest.approx(1.1, rel=1e-3)
    assert (folder / "latency.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["device.profile=xeon_vnni_ort", "budgets={latency_ms='90%'}"],
            "profile xeon_vnni_ort was not measured; make",
        ),
    ],
    ids=["profile"],
)
def test_what_cannot_be_confirmed_is_refused(overrides, message, tmp_path):
    chosen = [*overrides, "search.remeasure=2", "space.weights=['int8']", "space.activations=['int8']"]
    with pytest.raises(InputError, match=message):
        run_experiment(Experiment.load(QUICKSTART, overrides=chosen), out=tmp_path / "run")
