"""Synthetic devices whose costs are known: does the fit find them again?"""

from functools import partial

import pytest
from networks import residual

from haq.profiling.fit import KINDS, Sample, fit, fit_layers, left_out_errors, prior, shares
from haq.profiling.machine import features
from haq.profiling.policies import anchors, mixed_policies
from haq.values.formats import Precision

LOW = Precision.parse("w8a8")
NETWORK = residual()
NAMES = NETWORK.layer_names
FLOAT_MS = {name: 0.1 * (index + 1) for index, name in enumerate(NAMES)}
LOW_MS = {name: 0.08 * (7 - index) for index, name in enumerate(NAMES)}
PER_ELEMENT = {"switch_down": 1e-4, "switch_up": 3e-4, "join_down": 2e-4, "join_up": 5e-5}
FIXED = {"switch_down": 0.01, "switch_up": 0.0, "join_down": 0.0, "join_up": 0.02}


def true_ms(policies) -> list[float]:
    blank = features(NETWORK, policies, {policy.key: 0.0 for policy in policies}, LOW)
    return [
        sum(LOW_MS[name] if name in entry.low else FLOAT_MS[name] for name in NAMES)
        + sum(entry.counts[kind][0] * FIXED[kind] + entry.counts[kind][1] * PER_ELEMENT[kind] for kind in KINDS)
        for entry in blank
    ]


def samples(policies):
    return features(NETWORK, policies, dict(zip((p.key for p in policies), true_ms(policies), strict=True)), LOW)


def ratio(times: dict[str, float]) -> dict[str, float]:
    return {name: value / sum(times.values()) for name, value in times.items()}


def test_policies_that_were_not_measured_are_predicted():
    fitted = mixed_policies(NAMES, LOW, 14, seed=0)
    held_out = mixed_policies(NAMES, LOW, 20, seed=1, exclude=[policy.key for policy in fitted])
    top, bottom = samples(anchors(NAMES, LOW))
    found = fit(ratio(FLOAT_MS), ratio(LOW_MS), (top, bottom), samples(fitted))
    assert found.predict(top) == pytest.approx(top.ms)
    assert found.predict(bottom) == pytest.approx(bottom.ms)
    for entry in samples(held_out):
        assert found.predict(entry) == pytest.approx(entry.ms, rel=0.02)


def test_no_cost_is_negative_even_where_mixing_is_free():
    top, bottom = samples(anchors(NAMES, LOW))
    cheaper = [
        type(entry)(entry.low, entry.counts, 0.7 * entry.ms) for entry in samples(mixed_policies(NAMES, LOW, 8, seed=0))
    ]
    found = fit(ratio(FLOAT_MS), ratio(LOW_MS), (top, bottom), cheaper)
    assert min([*found.fixed.values(), *found.per_element.values(), *found.low.values()]) >= 0


def test_left_out_errors_show_a_policy_that_the_others_do_not_explain():
    mixed = samples(mixed_policies(NAMES, LOW, 14, seed=0))
    odd = type(mixed[3])(mixed[3].low, mixed[3].counts, 1.3 * mixed[3].ms)
    ends = tuple(samples(anchors(NAMES, LOW)))
    fitter = partial(fit, ratio(FLOAT_MS), ratio(LOW_MS), ends)
    errors = left_out_errors(fitter, [*mixed[:3], odd, *mixed[4:]])
    assert errors[3] == pytest.approx(-23, abs=4)
    assert max(range(len(errors)), key=lambda index: abs(errors[index])) == 3


def test_the_time_that_the_profiler_adds_to_each_layer_cancels():
    true = {"a": 10.0, "b": 30.0, "c": 60.0}
    assert shares({name: time + 5.0 for name, time in true.items()}, 100.0) == pytest.approx(ratio(true))
    assert shares(true, 120.0) == pytest.approx(ratio(true))


def test_without_a_profile_layers_are_fitted_to_end_to_end_times():
    fitted = mixed_policies(NAMES, LOW, 40, seed=0)
    held_out = mixed_policies(NAMES, LOW, 20, seed=1, exclude=[policy.key for policy in fitted])
    ends = tuple(samples(anchors(NAMES, LOW)))
    found = fit_layers(prior(NETWORK), ends, samples(fitted))
    assert min([*found.floating.values(), *found.low.values(), *found.per_element.values()]) >= 0
    for entry in ends:
        assert found.predict(entry) == pytest.approx(entry.ms, rel=0.01)
    errors = [abs(found.predict(entry) / entry.ms - 1) for entry in samples(held_out)]
    assert sum(errors) / len(errors) < 0.03
    assert sum(prior(NETWORK).values()) == pytest.approx(1)


def test_what_the_all_low_network_converts_is_no_layers_time():
    """Layers a, b: 10 and 20 ms in float, 4 and 6 in low precision; 3 ms to convert down, 5 to convert up."""

    def sample(low, down, up, ms):
        counts = {"switch_down": (down, 0), "switch_up": (up, 0), "join_down": (0, 0), "join_up": (0, 0)}
        return Sample(frozenset(low), counts, ms)

    top, bottom = sample("", 0, 0, 30.0), sample("ab", 1, 0, 13.0)
    mixed = [sample("a", 1, 1, 32.0), sample("b", 1, 0, 19.0)] * 20
    found = fit({"a": 1 / 3, "b": 2 / 3}, {"a": 0.4, "b": 0.6}, (top, bottom), mixed)
    assert found.fixed["switch_down"] == pytest.approx(3.0, rel=0.03)
    assert found.fixed["switch_up"] == pytest.approx(5.0, rel=0.03)
    assert found.low == pytest.approx({"a": 4.0, "b": 6.0}, rel=0.03)
    for entry in (top, bottom, *mixed[:2]):
        assert found.predict(entry) == pytest.approx(entry.ms, rel=0.01)
