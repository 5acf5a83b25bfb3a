"""Measured costs, looked up in a CSV file."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from haq.edges.cells import from_cell
from haq.edges.documents import read_text
from haq.hardware.base import ProfileCostModel
from haq.hardware.profile import HardwareProfile
from haq.hardware.sections import KindSection, Text
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.kinds import KINDS
from haq.values.network import LayerSpec, Network

COLUMNS = ("layer", "weight", "activation", "latency_ms", "energy_mj")


def shape_key(layer: LayerSpec) -> str:
    """What decides the cost of one call of a layer, as one word.

    Convolutions: `conv2d_i16_o32_k3x3_s1x1_g1_in28x28_out28x28` (input channels, output channels, kernel, stride,
    groups, spatial input and output size); linear layers: `linear_i512_o10_n1` with n the rows per call and sample;
    tables: `embedding_r1000_c64_n16` (rows, channels, rows looked up).
    """
    if KINDS[layer.kind].gathers:
        rows, channels = layer.weight_shape
        return f"{layer.kind}_r{rows}_c{channels}_n{layer.output_positions // layer.calls}"
    if KINDS[layer.kind].is_linear:
        rows = layer.output_positions // layer.calls
        return f"linear_i{layer.in_channels}_o{layer.out_channels}_n{rows}"

    def times(sizes: Iterable[int]) -> str:
        return "x".join(str(size) for size in sizes)

    return (
        f"{layer.kind}_i{layer.in_channels}_o{layer.out_channels}_k{times(layer.kernel)}_s{times(layer.stride)}"
        f"_g{layer.groups}_in{times(layer.input_shape[1:])}_out{times(layer.output_shape[1:])}"
    )


def network_digest(network: Network) -> str:
    """What a table of a network's own layers depends on: their names and shapes, in order."""
    text = "\n".join(f"{layer.name} {shape_key(layer)}" for layer in network.layers)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Table(KindSection):
    """Measured costs in a CSV file beside the profile."""

    file: Text
    energy: bool = False
    """Whether every row states `energy_mj`; otherwise the device has no energy."""

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,)


class Entry(NamedTuple):
    """One row of a table: the cost of one call, for the profile's batch."""

    latency_ms: float
    energy_mj: float | None


Key = tuple[str, Precision]


def _number(text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{column} {text!r} is not a number") from None
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{column} {text!r} must be finite and not negative")
    return value


def _read_row(row: Mapping[str, Any]) -> tuple[Key, Entry]:
    if None in row or any(row[column] is None for column in COLUMNS):
        raise ValueError(f"expected {len(COLUMNS)} values: {','.join(COLUMNS)}")
    precision = Precision(Format.parse(row["weight"].strip()), Format.parse(row["activation"].strip()))
    energy = _number(row["energy_mj"], "energy_mj") if row["energy_mj"].strip() else None
    return (from_cell(row["layer"].strip()), precision), Entry(_number(row["latency_ms"], "latency_ms"), energy)


def read_table(path: Path, *, energy: bool = False) -> dict[Key, Entry]:
    """Read a cost table: a CSV file with the columns layer, weight, activation, latency_ms, energy_mj.

    `layer` is a layer's name or its `shape_key`, `weight` and `activation` are formats, and the costs are those of one
    call; `energy_mj` may be empty unless `energy` is asked for.

    Raises:
        InputError: missing, unreadable or malformed; one line with the file and the line.
    """
    table: dict[Key, Entry] = {}
    try:
        reader = csv.DictReader(StringIO(read_text(path), newline=""), strict=True)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(f"{path}: the first line must be {','.join(COLUMNS)}")
        for row in reader:
            try:
                key, entry = _read_row(row)
                if energy and entry.energy_mj is None:
                    raise ValueError("energy_mj is empty; measure it or set table.energy = false in the profile")
            except ValueError as error:
                raise InputError(f"{path}: line {reader.line_num}: {error}") from error
            if key in table:
                raise InputError(f"{path}: line {reader.line_num}: {key[0]} in {key[1]} appears twice; remove one")
            table[key] = entry
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not table:
        raise InputError(f"{path}: holds no rows; measure some layers")
    return table


class TableModel(ProfileCostModel[Table]):
    """Exact look-up by the layer's name, else by its shape; nothing is interpolated.

    An embedding without a row takes no time.
    """

    def check(self) -> None:
        _ = self._table

    section = Table

    @classmethod
    def knows_energy(cls, profile: HardwareProfile) -> bool:
        return cls.section_of(profile).energy

    @property
    def _path(self) -> Path:
        return self.profile.folder / self.section_of(self.profile).file

    @cached_property
    def _table(self) -> dict[Key, Entry]:
        return read_table(self._path, energy=self.section_of(self.profile).energy)

    def _entry(self, layer: LayerSpec, precision: Precision) -> Entry:
        for key in (layer.name, shape_key(layer)):
            if (key, precision) in self._table:
                return self._table[key, precision]
        if KINDS[layer.kind].gathers:  # a few rows of memory, which measurements of layers leave out
            return Entry(0.0, 0.0)
        raise InputError(
            f"{self._path}: no row for layer {layer.name!r} ({shape_key(layer)}) in {precision}; "
            "measure it and add the row, or leave the precision out of the space"
        )

    def _latency_ms(self, layer: LayerSpec, precision: Precision) -> float:
        return layer.calls * self._entry(layer, precision).latency_ms

    def _energy_mj(self, layer: LayerSpec, precision: Precision) -> float:
        return layer.calls * (self._entry(layer, precision).energy_mj or 0.0)
