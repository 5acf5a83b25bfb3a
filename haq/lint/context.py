"""What rules look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from haq.experiment.experiment import Experiment
from haq.lint.findings import Finding
from haq.lint.measure import LossMeter
from haq.lint.observe import Observations
from haq.quant import QuantizedModel
from haq.values.formats import Precision
from haq.values.network import LayerSpec


@dataclass(frozen=True)
class Context:
    """A network on a device with some data.

    Attributes:
        experiment: the pieces.
        layers: name -> layer, in the network's order.
        low: layer -> the precision at which things are measured.
        high: layer -> the highest precision that it may take.
        seen: what one float pass saw.
        meter: measures losses.
        samples: layer -> values that it reads.
    """

    experiment: Experiment
    layers: Mapping[str, LayerSpec]
    low: Mapping[str, Precision]
    high: Mapping[str, Precision]
    seen: Observations
    meter: LossMeter
    samples: Mapping[str, Tensor]

    @property
    def model(self) -> QuantizedModel:
        return self.experiment.quantized

    @property
    def timed(self) -> bool:
        """Whether the device knows times."""
        return "latency_ms" in self.experiment.cost_model.metrics

    def latency(self, layer: LayerSpec, precision: Precision) -> float:
        """Milliseconds of one layer."""
        return self.experiment.cost_model.layer_cost(layer, precision).latency_ms

    @property
    def total_latency(self) -> float:
        """Milliseconds of all layers at the low precisions."""
        return sum(self.latency(layer, self.low[name]) for name, layer in self.layers.items())

    def sqnr_db(self, layer: str) -> float:
        """Of what the layer reads, in its low format."""
        return self.meter.sqnr_db(layer, self.low[layer].activation, self.samples[layer])

    def loss_finding(self, rule: str, layer: str, value: float, meaning: str, cost: float, advice: str) -> Finding:
        """A finding that costs loss."""
        return Finding(rule, layer, value, meaning, cost, "loss", self.meter.share(cost), advice)

    def time_finding(self, rule: str, layer: str, value: float, meaning: str, cost: float, advice: str) -> Finding:
        """A finding that costs milliseconds."""
        share = min(cost / self.total_latency, 1.0) if self.total_latency > 0 else 0.0
        return Finding(rule, layer, value, meaning, cost, "latency_ms", share, advice)
