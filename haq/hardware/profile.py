"""The schema of `hardware_profiles/*.toml` and its loader. A device is data: numbers with units and provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from haq.edges.validation import Section
from haq.hardware.sections import (
    OP_CLASSES,
    AlignmentRow,
    BitSerial,
    ConversionRow,
    Count,
    Device,
    FormatName,
    FormatRow,
    Measured,
    Memory,
    Op,
    Overhead,
    Packing,
    ProfileQuantization,
    Provenance,
    Roofline,
    Systolic,
    Table,
    Text,
    Ties,
)
from haq.values.formats import Format, Precision
from haq.values.trial import METRICS

Kind = Literal["capability", "table", "roofline", "bit_serial", "systolic"]


class HardwareProfile(Section):
    """A device: what it executes, at which cost, and where the numbers come from.

    All costs are for one inference of a batch of `batch` samples: with `batch = 16`, `latency_ms` is the time in which
    the device answers 16 samples, not a sixteenth of it.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """The file's name without `.toml` unless the file says otherwise."""
    title: Text
    kind: Kind
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
    roofline: Roofline | None = None
    bit_serial: BitSerial | None = None
    systolic: Systolic | None = None
    table: Table | None = None
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _consistent(self) -> HardwareProfile:
        self._check_section()
        self._check_rates()
        self._check_integers()
        self._check_switches()
        return self

    def _check_section(self) -> None:
        given: set[str] = {
            key for key in ("roofline", "bit_serial", "systolic", "table") if getattr(self, key) is not None
        }
        wanted: set[str] = set() if self.kind == "capability" else {self.kind}
        for key in sorted(wanted - given):
            raise ValueError(f"kind {self.kind!r} needs a section [{key}]; add it")
        for key in sorted(given - wanted):
            raise ValueError(f"kind {self.kind!r} does not read section [{key}]; remove it or change the kind")

    def _check_rates(self) -> None:
        if self.kind in ("bit_serial", "systolic") and self.device.frequency_mhz is None:
            raise ValueError("device.frequency_mhz: missing; add it")
        if self.kind == "systolic" and self.memory.bandwidth_gb_per_s is None:
            raise ValueError("memory.bandwidth_gb_per_s: missing; add it")
        if self.roofline is None:
            return
        if self.device.frequency_mhz is None and any(row.mac_per_cycle for row in self.roofline.rates):
            raise ValueError("device.frequency_mhz: missing; mac_per_cycle needs it")
        for op in OP_CLASSES:
            for precision in self.precisions(op):
                if not any(row.fits(op, precision) for row in self.roofline.rates):
                    raise ValueError(f"{precision} is in formats but no roofline.rates row fits it for {op}; add one")

    def _check_integers(self) -> None:
        for precision in self.all_precisions if self.kind in ("bit_serial", "systolic") else ():
            for fmt in (precision.weight, precision.activation):
                if fmt.is_float:
                    raise ValueError(f"a {self.kind} device computes integers; remove {fmt} from formats")
                if self.systolic is not None and fmt.bits > self.systolic.max_bits:
                    raise ValueError(f"{fmt} in formats is wider than systolic.max_bits {self.systolic.max_bits}")

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
        energy = (
            (self.roofline is not None and all(row.energy_pj_per_mac is not None for row in self.roofline.rates))
            or (self.bit_serial is not None and self.bit_serial.energy_pj_per_bit_mac is not None)
            or (self.systolic is not None and self.systolic.energy_pj_per_cycle is not None)
            or (self.table is not None and self.table.energy)
        )
        timed = {"latency_ms"} if self.kind != "capability" else set()
        names = {"size_bytes", "peak_activation_bytes", "bops"} | timed
        return frozenset(names | {"energy_mj"} if energy else names)

    def to_doc(self) -> dict[str, Any]:
        """Plain data with the keys of the file, defaults included."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

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
        if self.table is not None and (self.folder / self.table.file).is_file():
            digest.update((self.folder / self.table.file).read_bytes())
        return digest.hexdigest()[:16]
