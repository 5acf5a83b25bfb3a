"""Hardware profiles and the cost models that read them."""

from __future__ import annotations

from typing import Any, Literal

from haq.hardware.base import ProfileCostModel
from haq.hardware.cost_model import CostModel, require_metrics
from haq.hardware.host import cpu_capability, cpu_model, profile_warnings
from haq.hardware.kinds import COST_MODELS
from haq.hardware.kinds.table import network_digest, shape_key
from haq.hardware.load import list_profiles, load_profile, parse_profile, profile_names
from haq.hardware.packing import Granularity
from haq.hardware.profile import HardwareProfile


def build_cost_model(
    profile: HardwareProfile,
    *,
    weight_granularity: Granularity = "channel",
    group_size: int = 64,
    weight_scheme: Literal["symmetric", "affine"] = "symmetric",
) -> ProfileCostModel[Any]:
    """The cost model of a device, for networks whose weights are quantized in this way.

    Raises:
        InputError: the profile's table is missing or malformed.
    """
    model = COST_MODELS[profile.kind](
        profile, weight_granularity=weight_granularity, group_size=group_size, weight_scheme=weight_scheme
    )
    model.check()
    return model


__all__ = [
    "COST_MODELS",
    "CostModel",
    "HardwareProfile",
    "build_cost_model",
    "cpu_capability",
    "cpu_model",
    "list_profiles",
    "load_profile",
    "network_digest",
    "parse_profile",
    "profile_names",
    "profile_warnings",
    "require_metrics",
    "shape_key",
]
