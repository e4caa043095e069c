"""Files in the form of torch.save, written without torch; objects of torch and RecBole are stand-ins by name."""
import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np

STORAGES = {'float32': 'FloatStorage', 'float64': 'DoubleStorage', 'float16': 'HalfStorage', 'int64': 'LongStorage'}


def _rebuild_tensor_v2(*args):
    """Stands for torch's."""


def _rebuild_parameter(*args):
    """Stands for torch's."""


class Config:
    """Stands for RecBole's, which keeps its settings in final_config_dict."""

    def __init__(self, **settings):
        self.final_config_dict, self.device = settings, Device()


class Device:
    """Stands for torch.device, which pickles as a call."""

    def __reduce__(self):
        return Device, ('cuda', 0)

    def __init__(self, *args):
        del args


class Parameter:
    """Marks an array to be stored as a torch.nn.Parameter."""

    def __init__(self, array):
        self.array = array


NAMED = {
    'torch._utils': (_rebuild_tensor_v2, _rebuild_parameter), 'torch': (Device,),
    'recbole.config.configurator': (Config,),
}


class _Storage:
    def __init__(self, array, key):
        self.array, self.key = array, key


class _Pickler(pickle.Pickler):
    def __init__(self, out):
        super().__init__(out, protocol=2)
        self.storages = []

    def reducer_override(self, obj):
        if isinstance(obj, Parameter):
            return _rebuild_parameter, (obj.array, True, OrderedDict())
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        flat = obj if obj.base is None else obj.base  # a view keeps its storage, as in torch
        self.storages.append(_Storage(flat, str(len(self.storages))))
        start = (obj.ctypes.data - flat.ctypes.data) // flat.itemsize
        strides = tuple(step // obj.itemsize for step in obj.strides)
        return _rebuild_tensor_v2, (self.storages[-1], start, obj.shape, strides, False, OrderedDict())

    def persistent_id(self, obj):
        if not isinstance(obj, _Storage):
            return None
        kind = getattr(sys.modules['torch'], STORAGES[obj.array.dtype.name])
        return 'storage', kind, obj.key, 'cuda:0', obj.array.size


def save_like_torch(path, content, monkeypatch):
    """Write `content`, in which arrays stand for tensors."""
    with monkeypatch.context() as patch:
        for name, members in NAMED.items():
            module = types.ModuleType(name)
            for member in members:
                patch.setattr(member, '__module__', name)
                setattr(module, member.__name__, member)
            patch.setitem(sys.modules, name, module)
        for name in STORAGES.values():
            storage = type(name, (), {'__module__': 'torch'})
            setattr(sys.modules['torch'], name, storage)
        for name in ('recbole', 'recbole.config'):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        pickler = _Pickler(out := io.BytesIO())
        pickler.dump(content)
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('saved/data.pkl', out.getvalue())
        file.writestr('saved/byteorder', 'little')
        for storage in pickler.storages:
            file.writestr(f'saved/data/{storage.key}', storage.array.tobytes())
