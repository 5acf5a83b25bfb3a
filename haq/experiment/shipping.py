"""Models and data as one pickle beside plain arrays, which a worker reads where they lie."""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haq.values.errors import InputError


@dataclass(frozen=True)
class Shipment:
    """A value to be sent: `arrays` are the bytes of its tensors and arrays, in the order in which `pickled` asks."""

    pickled: bytes
    arrays: tuple[np.ndarray[Any, Any], ...]


def pack(value: Any) -> Shipment:
    """Take `value` apart; needs Ray, whose pickler knows functions and classes of any kind.

    Raises:
        InputError: it cannot be pickled.
    """
    import ray.cloudpickle

    base: Any = ray.cloudpickle.Pickler

    class Pickler(base):  # type: ignore[misc]
        def reducer_override(self, found: Any) -> Any:
            return _reduced(found) if type(found) in (Tensor, nn.Parameter) else super().reducer_override(found)

    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    try:
        Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise InputError(f"the model or the data cannot be sent to workers: {' '.join(str(error).split())}") from error
    return Shipment(stream.getvalue(), tuple(np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers))


def unpack(shipment: Shipment) -> Any:
    """The value again. Its tensors share memory with the arrays; writing to read-only ones ends the process."""
    return pickle.loads(shipment.pickled, buffers=shipment.arrays)


def _reduced(tensor: Tensor) -> tuple[Any, ...]:
    """How a dense tensor is pickled: its bytes as an array, which numpy hands over apart from the pickle."""
    data = tensor.detach().cpu()
    channels_last = data.dim() == 4 and not data.is_contiguous()
    data = (data.permute(0, 2, 3, 1) if channels_last else data).contiguous()
    content = data.reshape(-1).view(torch.uint8).numpy()
    is_parameter = isinstance(tensor, nn.Parameter)
    return _tensor, (content, data.dtype, tuple(data.shape), channels_last, is_parameter, tensor.requires_grad)


def _tensor(
    content: np.ndarray[Any, Any],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    channels_last: bool,
    is_parameter: bool,
    requires_grad: bool,
) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the array is read-only, as announced
        tensor = torch.from_numpy(content).view(dtype).reshape(shape)
    if channels_last:
        tensor = tensor.permute(0, 3, 1, 2)
    return nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)
