"""Writes tests/parity/checkpoints/: small files that PyTorch itself saved.

    python -m venv venv && venv/bin/pip install torch numpy
    venv/bin/python tests/peers/make_fixtures.py

Made with PyTorch 2.15.0 and NumPy 2.4.6. The tests read the files; nothing in
the repository runs this script.
"""

import collections
import pathlib
import pickle
import sys
import types

import numpy as np
import torch

OUT = pathlib.Path(__file__).parent.parent / "parity" / "checkpoints"
OUT.mkdir(exist_ok=True)


# An EDM snapshot reduces every persistent object to
# torch_utils.persistence._reconstruct_persistent_obj(meta). The module is
# stood in for here; only its name reaches the file.
persistence = types.ModuleType("torch_utils.persistence")
sys.modules["torch_utils"] = types.ModuleType("torch_utils")
sys.modules["torch_utils.persistence"] = persistence


def _reconstruct_persistent_obj(meta):
    raise NotImplementedError


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
_reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj

dnnlib_util = types.ModuleType("dnnlib.util")
sys.modules["dnnlib"] = types.ModuleType("dnnlib")
sys.modules["dnnlib.util"] = dnnlib_util
EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
dnnlib_util.EasyDict = EasyDict


class Persistent:
    def __reduce__(self):
        meta = dict(
            type="class",
            version=6,
            module_src="# source text left out of this fixture\n",
            class_name=type(self).__name__,
            state=dict(self.__dict__),
        )
        return _reconstruct_persistent_obj, (meta,)


class Module(Persistent, torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self._init_args = ()
        self._init_kwargs = EasyDict(kwargs)


class EDMPrecond(Module):
    pass


class SongUNet(Module):
    pass


class Linear(Module):
    def __init__(self, inputs, outputs):
        super().__init__(in_features=inputs)
        self.weight = torch.nn.Parameter(counted(outputs, inputs))
        self.bias = torch.nn.Parameter(counted(outputs))


class Conv2d(Module):
    def __init__(self, inputs, outputs, k):
        super().__init__(kernel=k)
        self.skip_scale = np.sqrt(0.5)
        self.weight = torch.nn.Parameter(counted(outputs, inputs, k, k))
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))


class EDMLoss(Persistent):
    def __init__(self):
        self.P_mean, self.sigma_data = -1.2, 0.5


def counted(*shape):
    """0, 1, 2, ... in row-major order."""
    return torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)


def snapshot():
    net = EDMPrecond(img_resolution=8)
    net.model = SongUNet(model_channels=4)
    net.model.map_layer0 = Linear(3, 4)
    net.model.enc = torch.nn.ModuleDict({"8x8_conv": Conv2d(3, 2, 1), "4x4_down": Conv2d(2, 2, 3)})
    kwargs = EasyDict(class_name="training.dataset.ImageFolderDataset", max_size=50000)
    return dict(ema=net, loss_fn=EDMLoss(), augment_pipe=None, dataset_kwargs=kwargs)


# Files of 2022 have NumPy 1's name of the module, today's have NumPy 2's.
scalar = np._core.multiarray.scalar
for protocol, module in [(2, "numpy.core"), (3, "numpy._core"), (4, "numpy.core"), (5, "numpy._core")]:
    scalar.__module__ = f"{module}.multiarray"
    with open(OUT / f"snapshot-protocol{protocol}.pkl", "wb") as file:
        pickle.dump(snapshot(), file, protocol=protocol)


# Views with strides, an offset, a storage in common, every type, and nesting.
shared = torch.arange(24, dtype=torch.float32)
tensors = collections.OrderedDict(
    conv=counted(2, 3, 4, 5).permute(3, 2, 0, 1),  # as the Inception file: not contiguous
    channels_last=counted(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    sliced=shared.reshape(4, 6)[1:3, 1::2],
    again=shared,
    scalar=torch.tensor(7, dtype=torch.int64),
    empty=torch.zeros(0, 3),
    f64=torch.tensor([0.1, -2.0], dtype=torch.float64),
    f16=torch.tensor([1.5, -0.000061, 65504, float("inf")], dtype=torch.float16),
    bf16=torch.tensor([1.5, -3.0, 1e30], dtype=torch.bfloat16),
    i32=torch.tensor([-1, 2], dtype=torch.int32),
    i16=torch.tensor([-300, 2], dtype=torch.int16),
    i8=torch.tensor([-128, 127], dtype=torch.int8),
    u8=torch.tensor([0, 255], dtype=torch.uint8),
    bool=torch.tensor([True, False]),
    nested={"parameter": torch.nn.Parameter(counted(2, 2)), "list": [counted(1), {"last": counted(2)}]},
    step=3,
)
torch.save(tensors, OUT / "strided.pth")
torch.save(tensors, OUT / "strided-legacy.pth", _use_new_zipfile_serialization=False)
