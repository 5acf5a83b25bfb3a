"""One file per kind of cost model, with the section of a profile that it reads. To add one: a file, and a line below.

In: a hardware profile, a layer, a precision. Out: latency, energy, bytes.
"""

from typing import Any

from haq.hardware.base import ProfileCostModel
from haq.hardware.kinds.bit_serial import BitSerialModel
from haq.hardware.kinds.roofline import RooflineModel
from haq.hardware.kinds.systolic import SystolicModel
from haq.hardware.kinds.table import TableModel

COST_MODELS: dict[str, type[ProfileCostModel[Any]]] = {
    "capability": ProfileCostModel,
    "table": TableModel,
    "roofline": RooflineModel,
    "bit_serial": BitSerialModel,
    "systolic": SystolicModel,
}
"""Profile kind -> cost model."""
