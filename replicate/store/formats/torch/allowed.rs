//! The allow-list of names in a pickle. None of them is ever called: a name only says what its
//! arguments mean.

use super::Dtype;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Constructor {
    OrderedDict,
    EasyDict,
    Set,
    /// `_codecs.encode(text, 'latin1')`: how protocols 0 to 2 write bytes.
    Encode,
    /// `bytes()` and `bytearray(bytes)`, likewise.
    Bytes,
    /// An object of EDM's: the source text of its class, its name, its `__dict__`.
    Persistent,
    ModuleDict,
    /// A parameter: a tensor with or without attributes.
    RebuildParameter,
    RebuildTensor,
    /// Like `RebuildTensor` with untyped bytes; the type is an argument.
    RebuildTyped,
    /// `(function, type, arguments, attributes)`: a tensor with attributes.
    RebuildFromType,
    /// A tensor that is not read: sparse, quantised, nested, or without numbers.
    OtherTensor,
    /// A legacy torch stream with one storage.
    LoadFromBytes,
    Storage(Dtype),
    /// A storage of elements that are not read; the bytes of one.
    OtherStorage(u8),
    /// Type of a tensor's elements, as a value.
    Dtype(Dtype),
    /// Objects that `torch.load(weights_only=True)` also accepts and that no tensor needs: a
    /// device, a size, a layout, a class of tensors, a complex number.
    Inert,
    /// A NumPy number: its type, its bytes.
    NumpyScalar,
    /// An empty NumPy array; its content comes as its state.
    NumpyArray,
    /// `(bytes, type, shape, order)`: how protocol 5 writes arrays.
    NumpyFromBuffer,
    /// NumPy's array type, an argument of the others.
    NumpyArrayType,
    NumpyDtype,
}

/// Looks up a name under the modules of Python 2 and 3 and of NumPy 1 and 2.
pub(super) fn constructor(module: &str, name: &str) -> Option<Constructor> {
    use Constructor::*;
    Some(match (module, name) {
        ("collections", "OrderedDict") => OrderedDict,
        ("collections", "Counter") => Inert,
        ("dnnlib.util", "EasyDict") => EasyDict,
        ("builtins" | "__builtin__", "set" | "frozenset") => Set,
        ("builtins" | "__builtin__", "bytes" | "bytearray") => Bytes,
        ("builtins" | "__builtin__", "complex") => Inert,
        ("_codecs", "encode") => Encode,
        ("torch_utils.persistence", "_reconstruct_persistent_obj") => Persistent,
        ("torch.nn.modules.container", "ModuleDict") => ModuleDict,
        ("torch.nn.parameter", "Parameter" | "Buffer") => Inert,
        ("torch.serialization", "_get_layout") => Inert,
        ("torch.storage", "_load_from_bytes") => LoadFromBytes,
        ("torch.storage", "UntypedStorage") => Storage(super::Dtype::U8),
        ("torch._tensor", "_rebuild_from_type_v2") => RebuildFromType,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => RebuildParameter,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => RebuildTyped,
        (
            "torch._utils",
            "_rebuild_qtensor"
            | "_rebuild_sparse_tensor"
            | "_rebuild_nested_tensor"
            | "_rebuild_meta_tensor_no_storage"
            | "_rebuild_device_tensor_from_numpy"
            | "_rebuild_device_tensor_from_cpu_tensor"
            | "_rebuild_wrapper_subclass",
        ) => OtherTensor,
        ("torch", name) => of_torch(name)?,
        ("torch.cuda" | "torch.sparse" | "torch.cuda.sparse", name) => match of_torch(name)? {
            found if name.ends_with("Storage") || name.ends_with("Tensor") => found,
            _ => return None,
        },
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => NumpyScalar,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => NumpyArray,
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => NumpyFromBuffer,
        ("numpy", "ndarray" | "memmap") => NumpyArrayType,
        ("numpy", "dtype") => NumpyDtype,
        _ => return None,
    })
}

/// Storages of complex and quantised numbers, with the bytes of an element.
const OTHER_STORAGES: [(&str, u8); 7] = [
    ("ComplexDouble", 16),
    ("ComplexFloat", 8),
    ("QInt32", 4),
    ("QInt8", 1),
    ("QUInt8", 1),
    ("QUInt4x2", 1),
    ("QUInt2x4", 1),
];

/// Looks up `torch.NAME`: a storage, a type of elements, or an inert object.
fn of_torch(name: &str) -> Option<Constructor> {
    const KINDS: [(Dtype, &str, &[&str]); 10] = [
        (Dtype::F64, "Double", &["float64", "double"]),
        (Dtype::F32, "Float", &["float32", "float"]),
        (Dtype::F16, "Half", &["float16", "half"]),
        (Dtype::BF16, "BFloat16", &["bfloat16"]),
        (Dtype::I64, "Long", &["int64", "long"]),
        (Dtype::I32, "Int", &["int32", "int"]),
        (Dtype::I16, "Short", &["int16", "short"]),
        (Dtype::I8, "Char", &["int8"]),
        (Dtype::U8, "Byte", &["uint8"]),
        (Dtype::Bool, "Bool", &["bool"]),
    ];
    if let Some(kind) = name.strip_suffix("Storage") {
        let found =
            KINDS.iter().find(|(_, known, _)| *known == kind || kind == "Untyped" && *known == "Byte");
        let other = OTHER_STORAGES.iter().find(|(known, _)| *known == kind);
        let other = other.map(|(_, bytes)| Constructor::OtherStorage(*bytes));
        return found.map(|(dtype, ..)| Constructor::Storage(*dtype)).or(other);
    }
    if name.strip_suffix("Tensor").is_some_and(|kind| KINDS.iter().any(|(_, known, _)| *known == kind)) {
        return Some(Constructor::Inert);
    }
    if let Some((dtype, ..)) = KINDS.iter().find(|(.., names)| names.contains(&name)) {
        return Some(Constructor::Dtype(*dtype));
    }
    // Types that are not read end with their width, for example `complex64` and `float8_e5m2`.
    let other = ["uint", "complex", "float8_e", "float4_e", "qint", "quint", "bits"];
    let is_type = other.iter().any(|kind| name.strip_prefix(kind).is_some_and(|rest| !rest.is_empty()));
    let inert = matches!(name, "Size" | "Tensor" | "device" | "cfloat" | "cdouble" | "chalf" | "bcomplex32")
        || matches!(name.strip_prefix("int"), Some("1" | "2" | "3" | "4" | "5" | "6" | "7"));
    (is_type || inert || name.starts_with("per_tensor_") || name.starts_with("per_channel_"))
        .then_some(Constructor::Inert)
}
