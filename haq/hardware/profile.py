"""The schema of `hardware_profiles/*.toml` and its loader. A device is data: numbers with units and provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, SerializeAsAny, model_validator

from haq.edges.documents import read_bytes
from haq.edges.validation import Section
from haq.hardware.sections import (
    AlignmentRow,
    ConversionRow,
    Count,
    Device,
    FormatName,
    FormatRow,
    KindSection,
    Measured,
    Memory,
    Op,
    Overhead,
    Packing,
    ProfileQuantization,
    Provenance,
    Text,
    Ties,
)
from haq.values.formats import Format, Precision
from haq.values.trial import METRICS


class HardwareProfile(Section):
    """A device: what it executes, at which cost, and where the numbers come from.

    All costs are for one inference of a batch of `batch` samples: with `batch = 16`, `latency_ms` is the time in which
    the device answers 16 samples, not a sixteenth of it.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """The file's name without `.toml` unless the file says otherwise."""
    title: Text
    kind: Text
    """Of cost model: a name in `haq.hardware.COST_MODELS`; its section has the same name."""
    batch: Count = 1
    device: Device
    provenance: Provenance
    measured: Measured | None = None
    """Of a profile that `haq profile` made."""
    formats: tuple[FormatRow, ...] = Field(min_length=1)
    input_format: FormatName | None = None
    """The format in which the network's input arrives; left out: in whichever the first layer wants, at no cost."""
    quantization: ProfileQuantization = ProfileQuantization()
    ties: Ties = Ties()
    alignment: tuple[AlignmentRow, ...] = ()
    packing: Packing = Packing()
    memory: Memory = Memory()
    overhead: Overhead = Overhead()
    switch: tuple[ConversionRow, ...] = ()
    join: tuple[ConversionRow, ...] = ()
    """Cost per element of an operand whose format differs from its join's; left out: that of a switch."""
    section: SerializeAsAny[KindSection] | None = Field(None, exclude=True)
    """What only this kind reads; in the file under the name of the kind."""
    _folder: Path = PrivateAttr(default=Path())
    _energy: bool = PrivateAttr(default=False)

    @model_validator(mode="after")
    def _consistent(self) -> HardwareProfile:
        self._check_switches()
        return self

    def _check_switches(self) -> None:
        if self.kind == "capability":
            return
        rows = (*self.switch, *self.join)
        if self.memory.bandwidth_gb_per_s is None and any(row.per_element_ns is None for row in rows):
            raise ValueError("a switch or join without per_element_ns needs memory.bandwidth_gb_per_s")
        formats = sorted({precision.activation for precision in self.all_precisions})
        sources = {*formats, *([Format.parse(self.input_format)] if self.input_format else [])}
        for name, table in (("switch", self.switch), ("join", self.join)):
            for written, wanted in product(sorted(sources), formats):
                if written == wanted or (name == "join" and not table):
                    continue
                if not any(row.fits(written, wanted) for row in table):
                    raise ValueError(f"no {name} row fits {written} -> {wanted}; add one, with zeros where it is free")

    @property
    def all_precisions(self) -> tuple[Precision, ...]:
        """Every precision that some layer can take."""
        return tuple(sorted({precision for row in self.formats for precision in row.precisions()}))

    def precisions(self, op: Op, *, accelerated: bool = False) -> tuple[Precision, ...]:
        """What a layer of operation class `op` can take, sorted; with `accelerated` only what runs fast."""
        rows = [row for row in self.formats if row.accelerated or not accelerated]
        fitting = {precision for row in rows for precision in row.precisions() if row.fits(op, precision)}
        return tuple(sorted(fitting))

    @property
    def folder(self) -> Path:
        """Where the profile was read from; a table's file is relative to it."""
        return self._folder

    @property
    def metrics(self) -> frozenset[str]:
        """The cost metrics that the profile's figures can price; energy only where every precision states it."""
        timed = {"latency_ms"} if self.kind != "capability" else set()
        names = {"size_bytes", "peak_activation_bytes", "bops"} | timed
        return frozenset(names | {"energy_mj"} if self._energy else names)

    def to_doc(self) -> dict[str, Any]:
        """Plain data with the keys of the file, defaults included."""
        document = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        if self.section is not None:
            document[self.kind] = self.section.model_dump(mode="json", by_alias=True, exclude_none=True)
        return document

    def require(self, key: str, value: object) -> None:
        """For a kind's own check: `key` of the profile, which is `value`, must be stated.

        Raises:
            ValueError: it is not.
        """
        if value is None:
            raise ValueError(f"{key}: missing; kind {self.kind!r} needs it; add it")

    def require_integers(self, *, max_bits: int | None = None, key: str = "") -> None:
        """For a kind's own check: all formats are integers, of at most `max_bits`, which the profile's `key` states.

        Raises:
            ValueError: names the format.
        """
        for fmt in sorted({fmt for pair in self.all_precisions for fmt in (pair.weight, pair.activation)}):
            if not fmt.family.is_integer:
                raise ValueError(f"a {self.kind} device computes integers; remove {fmt} from formats")
            if max_bits is not None and fmt.bits > max_bits:
                raise ValueError(f"{fmt} in formats is wider than {key} {max_bits}")

    def summary(self) -> dict[str, Any]:
        """One row of a list of devices."""
        return {
            "name": self.name,
            "title": self.title,
            "kind": self.kind,
            "batch": self.batch,
            "precisions": [str(precision) for precision in self.all_precisions],
            "metrics": [metric for metric in METRICS if metric in self.metrics],
        }

    def warnings(self, costs: Mapping[str, float]) -> tuple[str, ...]:
        """One line for each memory of the device that a policy with these costs does not fit."""
        memory = self.memory
        stated = (("size_bytes", "flash", memory.flash_bytes), ("peak_activation_bytes", "RAM", memory.ram_bytes))
        return tuple(
            f"{metric} {costs[metric]:,.0f} is more than the {capacity:,} bytes of {what} of {self.name}"
            for metric, what, capacity in stated
            if capacity is not None and costs.get(metric, 0.0) > capacity
        )

    @property
    def digest(self) -> str:
        """A hash of the profile's content, its table included."""
        digest = hashlib.sha256(self.model_dump_json().encode())
        if self.section is not None:
            digest.update(self.section.model_dump_json().encode())
            for name in self.section.files:
                if (self.folder / name).exists():
                    digest.update(read_bytes(self.folder / name))
        return digest.hexdigest()[:16]
