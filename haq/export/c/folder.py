"""The folder that `haq export --format c` writes, and how its model is run on this machine."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haq.edges.documents import write_json
from haq.engine import IntegerModel, IntegerRunner, load_integer, save_integer
from haq.engine.run import dequantize
from haq.export.c.parts import header
from haq.export.c.plan import Plan, plan
from haq.export.c.source import Source
from haq.values.errors import InputError

_RUNTIME = ("haq_runtime.h", "haq_layer.h", "main.c", "count.c", "startup.c", "mps2.ld", "Makefile")
_VECTORS = 20
MODEL_FILE = "model.safetensors"


def save_c(model: IntegerModel, inputs: Any, path: Path) -> Plan:
    """Write the folder `path`: sources, runtime, Makefile, test vectors, and the integer model beside them.

    Args:
        model: with outputs of 8 bits.
        inputs: float samples, whose first ones become test vectors.
        path: a new or empty folder.

    Raises:
        InputError: the folder is in use or cannot be written, or the C cannot hold the model.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"--out {path}: is in use; name a new folder, or empty it")
    made = plan(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".haq-") as folder:
            draft = Path(folder) / "c"
            draft.mkdir()
            _write(made, inputs, draft)
            draft.replace(path)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror or error}; choose another") from error
    return made


def _write(made: Plan, inputs: Any, folder: Path) -> None:
    for name in _RUNTIME:
        text = resources.files("haq.export.c").joinpath("runtime", name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "model.h").write_text(header(made), encoding="utf-8")
    (folder / "model.c").write_text(Source(made).text(), encoding="utf-8")
    (folder / "vectors.h").write_text(vectors(made.model, inputs), encoding="utf-8")
    save_integer(made.model, folder / MODEL_FILE)
    memory = {"arena_bytes": made.arena.bytes, "arena_lower_bound": made.arena.lower_bound}
    write_json(folder / "memory.json", {"schema_version": 1, **memory, "constant_bytes": made.flash_bytes})


def vectors(model: IntegerModel, inputs: Any, *, count: int = _VECTORS) -> str:
    """Test vectors as C: inputs, and what the engine computes of them."""
    runner = IntegerRunner(model)
    (integers,) = runner.quantize(inputs).values()
    integers = integers[:count]
    outputs = runner.integers({model.inputs[0].name: integers})
    flat = torch.cat([output.reshape(len(integers), -1) for output in outputs], 1)
    lines = ["/* Made by haq export --format c. */", f"#define VECTORS {len(integers)}"]
    for name, rows in (("inputs", integers.reshape(len(integers), -1)), ("outputs", flat)):
        lines.append(f"static const int8_t vector_{name}[VECTORS][{rows.shape[1]}] = {{")
        lines += [f"    {{{', '.join(map(str, row))}}}," for row in rows.tolist()]
        lines.append("};")
    return "\n".join(lines) + "\n"


def run_command(command: list[str], *, cwd: Path, what: str, remedy: str) -> str:
    """Run a tool; its standard output.

    Raises:
        InputError: it is not installed, or fails: its first line of errors.
    """
    if shutil.which(command[0]) is None:
        raise InputError(f"{what} needs {command[0]}, which is not installed; {remedy}")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise InputError(f"{what}: {command[0]} failed: {lines[0] if lines else 'without a message'}")
    return done.stdout


class CRunner:
    """The generated C, compiled for this machine and called in this process.

    Args:
        folder: that `save_c` wrote.

    Raises:
        InputError: no folder of that kind, no C compiler, or one that fails.
    """

    def __init__(self, folder: Path) -> None:
        self._engine = IntegerRunner(load_integer(folder / MODEL_FILE))
        self._built = tempfile.TemporaryDirectory(prefix="haq-")
        library = Path(self._built.name) / "model.so"
        flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        remedy = "install a C compiler, or leave out --check"
        run_command(["cc", *flags, "-o", str(library), "model.c"], cwd=folder, what="--check of C", remedy=remedy)
        self._run = ctypes.CDLL(str(library)).model_run

    def integers(self, x: Tensor) -> Tensor:
        """Integers of samples -> integers of their outputs, `[n, outputs]`."""
        model = self._engine.model
        given = np.ascontiguousarray(x.reshape(len(x), -1).numpy().astype(np.int8))
        size = sum(model[name].elements for name in model.outputs)
        result = np.zeros((len(x), size), dtype=np.int8)
        pointer = ctypes.POINTER(ctypes.c_int8)
        for row, out in zip(given, result, strict=True):
            self._run(row.ctypes.data_as(pointer), out.ctypes.data_as(pointer))
        return torch.from_numpy(result.astype(np.int32))

    def __call__(self, inputs: Any) -> Any:
        """Float inputs of one batch -> float outputs."""
        model = self._engine.model
        (integers,) = self._engine.quantize(inputs).values()
        nodes = [model[name] for name in model.outputs]
        parts = torch.split(self.integers(integers), [node.elements for node in nodes], 1)
        pairs = zip(parts, nodes, strict=True)
        values = tuple(dequantize(part.reshape(-1, *node.shape), node.format) for part, node in pairs)
        return values[0] if len(values) == 1 else values
