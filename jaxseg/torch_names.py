"""The classes and functions that a checkpoint may name, and what is said of any other."""

# How tensors are written; `torch_tensors` knows what they mean.
REBUILD = {
    f"torch._utils._rebuild_{kind}": kind
    for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")
} | {"torch._tensor._rebuild_from_type_v2": "from_type"}
STORAGES = {
    f"torch.{kind}Storage": code
    for kind, code in {
        **{"Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": "bf16", "Long": "i8"},
        **{"Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "b1"},
        **{"Untyped": "u1"},
    }.items()
} | {"torch.storage.UntypedStorage": "u1"}
DTYPES = {
    f"torch.{name}": code
    for name, code in {
        **{"float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "bf16", "int64": "i8"},
        **{"int32": "i4", "int16": "i2", "int8": "i1", "uint64": "u8", "uint32": "u4"},
        **{"uint16": "u2", "uint8": "u1", "bool": "b1"},
    }.items()
}
ARRAYS = {
    f"numpy.{core}.multiarray.{kind}": kind
    for core in ("core", "_core")
    for kind in ("_reconstruct", "scalar")
}
# What checkpoints hold beside the weights (configs, logs, options): kept as data, used for nothing.
_INERT = {
    "_codecs.encode",
    "addict.addict.Dict",
    "argparse.Namespace",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.deque",
    "datetime.datetime",
    "datetime.timedelta",
    "mmcv.utils.config.Config",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.Config",
    "mmengine.config.config.ConfigDict",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.torch_version.TorchVersion",
    *(
        f"builtins.{name}"
        for name in (
            *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int"),
            *("list", "object", "range", "set", "slice", "str", "tuple"),
        )
    ),
}
ALLOWED = _INERT | set(REBUILD) | set(STORAGES) | set(DTYPES) | set(ARRAYS)
# Modules of which no checkpoint needs anything but the names above: to name more is an attack.
_HOSTILE = set(
    "_pickle _posixsubprocess asyncio bdb builtins cloudpickle code codeop commands ctypes dill"
    " distutils httplib imp importlib inspect io joblib marshal multiprocessing nt operator os pdb"
    " pickle pip pkgutil platform posix profile pty pydoc requests runpy setuptools shutil signal"
    " site smtplib socket ssl subprocess sys tempfile timeit trace urllib webbrowser".split()
)


def refusal(module: str, full: str) -> str:
    """Why the name `full`, of `module`, is refused, and what to do."""
    shown = full if full.isprintable() and len(full) < 100 else repr(full[:100])
    if module.split(".")[0] in _HOSTILE:
        return (
            f"it tries to call {shown} when it is opened, as a malicious file does. It was refused "
            "and nothing of it was run. Delete it, and take the weights from their publisher"
        )
    return (
        f"it holds {shown}, which is no part of a state dict: a whole pickled model, or objects "
        "beside the weights? It was refused and nothing of it was run. If you trust it, open it in "
        "PyTorch and save the state dict alone: torch.save(model.state_dict(), ...)"
    )
