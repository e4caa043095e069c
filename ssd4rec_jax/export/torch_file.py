"""Read the tensors of a file that torch.save wrote, without torch and without running what the file says.

Such a file is a zip with a pickle, data.pkl, and the bytes of each storage, data/KEY. A pickle names functions to call.
Here each name means a class of this module that only keeps what it is given: a tensor, a dict, or, for all other names,
`Inert`. So nothing of the file is run, and objects of libraries that are not here do not matter.
"""
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ssd4rec_jax.errors import CheckpointError
from ssd4rec_jax.files import first_line

_DTYPES = {
    'FloatStorage': '<f4', 'DoubleStorage': '<f8', 'HalfStorage': '<f2', 'LongStorage': '<i8', 'IntStorage': '<i4',
}


class Inert:
    """Whatever is no tensor: it keeps the state that it is given, and does nothing."""

    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any):
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Keeps nothing."""

    def extend(self, values: Any) -> None:
        """Keeps nothing."""


class Tensor:
    """Where a tensor's numbers lie: a storage (class name, key), the offset of the first, sizes and strides."""

    def __init__(self, storage: tuple[str, str], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def __setstate__(self, state: Any) -> None:
        pass


class _Parameter:
    """A torch.nn.Parameter is its tensor."""

    def __new__(cls, tensor: Any, *_: Any) -> Any:
        return tensor

    def __setstate__(self, state: Any) -> None:
        pass


class _Dict(dict):
    def __setstate__(self, state: Any) -> None:
        pass


_KNOWN = {
    ('torch._utils', '_rebuild_tensor_v2'): Tensor, ('torch._utils', '_rebuild_parameter'): _Parameter,
    ('collections', 'OrderedDict'): _Dict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == 'torch' and name.endswith('Storage'):
            return type(name, (Inert,), {})
        return _KNOWN.get((module, name), Inert)

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, storage, key, *_ = pid
        return storage.__name__, str(key)


class TorchFile:
    """A file that torch.save wrote. content: what was saved, with Tensor and Inert objects in it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                (pickled,) = (name for name in file.namelist() if name.endswith('/data.pkl'))
                self._folder = pickled.removesuffix('data.pkl')
                self.content = _Unpickler(io.BytesIO(file.read(pickled))).load()
                order = f'{self._folder}byteorder'
                if order in file.namelist() and file.read(order) != b'little':
                    raise ValueError('its numbers are big-endian')
        except FileNotFoundError as error:
            raise CheckpointError(f'there is no file {path}: name the checkpoint') from error
        except Exception as error:  # A file of anybody's can fail in any way.
            raise CheckpointError(
                f'{path} is no file that torch.save of PyTorch 1.6 or later wrote ({first_line(error)})'
            ) from error

    def arrays(self, tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """The numbers of tensors of this file, by name; CheckpointError where they are not there."""
        found = {}
        with zipfile.ZipFile(self.path) as file:
            for name, tensor in tensors.items():
                try:
                    found[name] = self._array(file, tensor)
                except Exception as error:  # As above; what the pickle says of a tensor may be anything.
                    raise CheckpointError(f'{self.path}: {name} cannot be read ({first_line(error)})') from error
        return found

    def _array(self, file: zipfile.ZipFile, tensor: Tensor) -> np.ndarray:
        kind, key = tensor.storage
        if kind not in _DTYPES:
            raise ValueError(f'numbers of {kind} are not read')
        flat = np.frombuffer(file.read(f'{self._folder}data/{key}'), _DTYPES[kind])
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
        if min(tensor.offset, *tensor.size, *tensor.stride, 0) < 0 or 0 not in tensor.size and last >= len(flat):
            raise ValueError('it goes beyond its storage')
        steps = [step * flat.itemsize for step in tensor.stride]
        return np.lib.stride_tricks.as_strided(flat[tensor.offset:], tensor.size, steps, writeable=False).copy()
