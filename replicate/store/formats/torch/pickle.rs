//! Python's pickle format as data: protocols 2 to 5, interpreted without ever
//! calling anything.
//!
//! A pickle is a program for a stack machine that may call whatever Python can
//! import. Here a call is kept as a [`Node::Object`], a name with arguments, and
//! only the names in [`ALLOWED`] can be said at all; every other name is an
//! error. What the objects mean is decided afterwards, in `torch` and `names`,
//! and for the batches of CIFAR's python files in `data::cifar::python`.
//!
//! The machine is ours because the crates at hand do not serve: candle's knows
//! the opcodes of a flat state dict only, and a general unpickler either drops
//! the names of the constructors or puts no bound on what a file may cost. Here
//! strings and payloads are borrowed from the file, every opcode does a bounded
//! amount of work, and [`Budget`] bounds the number of opcodes.

use super::{Budget, Fault, quote};

/// What a file may construct. Nothing else can be named in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Constructor {
    OrderedDict,
    EasyDict,
    Set,
    /// `_codecs.encode(text, 'latin1')`: how protocol 2 writes bytes.
    Encode,
    /// An object of EDM's: the class's source text, its name, its `__dict__`.
    Persistent,
    ModuleDict,
    RebuildParameter,
    RebuildTensor,
    /// A legacy torch stream with one storage.
    LoadFromBytes,
    Storage(super::Dtype),
    /// A number of NumPy's; no tensor needs its value.
    NumpyScalar,
    /// An empty array; what it holds comes as its state.
    NumpyArray,
    /// NumPy's array as a type, an argument of the former.
    NumpyArrayType,
    NumpyDtype,
}

#[rustfmt::skip]
const ALLOWED: &[(&str, &str, Constructor)] = {
    use super::Dtype::*;
    use Constructor::*;
    &[
        ("collections", "OrderedDict", OrderedDict),
        ("dnnlib.util", "EasyDict", EasyDict),
        ("builtins", "set", Set),
        ("__builtin__", "set", Set),
        ("_codecs", "encode", Encode),
        ("torch_utils.persistence", "_reconstruct_persistent_obj", Persistent),
        ("torch.nn.modules.container", "ModuleDict", ModuleDict),
        ("torch._utils", "_rebuild_parameter", RebuildParameter),
        ("torch._utils", "_rebuild_tensor_v2", RebuildTensor),
        ("torch.storage", "_load_from_bytes", LoadFromBytes),
        ("torch", "FloatStorage", Storage(F32)),
        ("torch", "DoubleStorage", Storage(F64)),
        ("torch", "HalfStorage", Storage(F16)),
        ("torch", "BFloat16Storage", Storage(BF16)),
        ("torch", "LongStorage", Storage(I64)),
        ("torch", "IntStorage", Storage(I32)),
        ("torch", "ShortStorage", Storage(I16)),
        ("torch", "CharStorage", Storage(I8)),
        ("torch", "ByteStorage", Storage(U8)),
        ("torch", "BoolStorage", Storage(Bool)),
        ("numpy.core.multiarray", "scalar", NumpyScalar),
        ("numpy._core.multiarray", "scalar", NumpyScalar),
        ("numpy.core.multiarray", "_reconstruct", NumpyArray),
        ("numpy._core.multiarray", "_reconstruct", NumpyArray),
        ("numpy", "ndarray", NumpyArrayType),
        ("numpy", "dtype", NumpyDtype),
    ]
};

/// Index of a node in its pickle.
pub(crate) type NodeId = u32;

/// A value on the stack. Small: containers are nodes, so that two references to
/// one container stay one container.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// Little-endian two's complement of more than 8 bytes.
    Long(&'a [u8]),
    Float,
    Str(&'a str),
    Bytes(&'a [u8]),
    Constructor(Constructor),
    Node(NodeId),
}

#[derive(Debug)]
pub(crate) enum Node<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    /// Its members are not kept.
    Set,
    /// A call that was not made.
    Object {
        constructor: Constructor,
        arguments: Value<'a>,
        entries: Vec<(Value<'a>, Value<'a>)>,
        state: Value<'a>,
    },
    /// Something outside the pickle, by its persistent id.
    Outside(Value<'a>),
}

/// What one pickle holds.
pub(crate) struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    pub root: Value<'a>,
    pub protocol: u8,
    /// Where the bytes behind the pickle begin.
    pub end: usize,
}

impl<'a> Pickle<'a> {
    /// The pickle that begins at byte `at`.
    pub(super) fn read(bytes: &'a [u8], at: usize, budget: &mut Budget) -> Result<Pickle<'a>, Fault> {
        let mut machine = Machine { bytes, at, stack: vec![], marks: vec![], memo: vec![], nodes: vec![] };
        let protocol = match machine.take(2)? {
            [op::PROTO, protocol @ 2..=5] => *protocol,
            [op::PROTO, protocol] => return Err(Fault::broken(format!("a pickle of protocol {protocol}"))),
            _ => return Err(Fault::broken(format!("no pickle at byte {at}"))),
        };
        loop {
            let begin = machine.at;
            budget.opcode()?;
            if let Some(root) = machine.step().map_err(|fault| fault.at_byte(begin))? {
                return Ok(Pickle { nodes: machine.nodes, root, protocol, end: machine.at });
            }
        }
    }

    pub fn node(&self, id: NodeId) -> &Node<'a> {
        &self.nodes[id as usize]
    }

    pub fn nodes(&self) -> &[Node<'a>] {
        &self.nodes
    }

    pub fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Node(id) => match self.node(id) {
                Node::Tuple(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    /// The entries of a `dict`, `OrderedDict` or `EasyDict`.
    pub fn entries(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match value {
            Value::Node(id) => match self.node(id) {
                Node::Dict(entries) => Some(entries),
                Node::Object {
                    constructor: Constructor::OrderedDict | Constructor::EasyDict,
                    entries,
                    ..
                } => Some(entries),
                _ => None,
            },
            _ => None,
        }
    }

    /// What a dictionary has under a text.
    pub fn get(&self, dict: Value<'a>, key: &str) -> Option<Value<'a>> {
        let is_key = |(k, _): &&(Value, Value)| matches!(k, Value::Str(text) if *text == key);
        self.entries(dict)?.iter().find(is_key).map(|(_, value)| *value)
    }
}

/// Opcodes by the names of Python's `pickletools`.
#[rustfmt::skip]
mod op {
    pub const MARK: u8 = b'(';
    pub const STOP: u8 = b'.';
    pub const POP: u8 = b'0';
    pub const POP_MARK: u8 = b'1';
    pub const BINFLOAT: u8 = b'G';
    pub const BININT: u8 = b'J';
    pub const BININT1: u8 = b'K';
    pub const BININT2: u8 = b'M';
    pub const NONE: u8 = b'N';
    pub const BINPERSID: u8 = b'Q';
    pub const REDUCE: u8 = b'R';
    pub const BINSTRING: u8 = b'T';
    pub const SHORT_BINSTRING: u8 = b'U';
    pub const BINUNICODE: u8 = b'X';
    pub const APPEND: u8 = b'a';
    pub const BUILD: u8 = b'b';
    pub const GLOBAL: u8 = b'c';
    pub const APPENDS: u8 = b'e';
    pub const BINGET: u8 = b'h';
    pub const INST: u8 = b'i';
    pub const LONG_BINGET: u8 = b'j';
    pub const OBJ: u8 = b'o';
    pub const BINPUT: u8 = b'q';
    pub const LONG_BINPUT: u8 = b'r';
    pub const SETITEM: u8 = b's';
    pub const TUPLE: u8 = b't';
    pub const EMPTY_TUPLE: u8 = b')';
    pub const SETITEMS: u8 = b'u';
    pub const EMPTY_DICT: u8 = b'}';
    pub const EMPTY_LIST: u8 = b']';
    pub const BINBYTES: u8 = b'B';
    pub const SHORT_BINBYTES: u8 = b'C';
    pub const PROTO: u8 = 0x80;
    pub const NEWOBJ: u8 = 0x81;
    pub const EXT1: u8 = 0x82;
    pub const EXT2: u8 = 0x83;
    pub const EXT4: u8 = 0x84;
    pub const TUPLE1: u8 = 0x85;
    pub const TUPLE2: u8 = 0x86;
    pub const TUPLE3: u8 = 0x87;
    pub const NEWTRUE: u8 = 0x88;
    pub const NEWFALSE: u8 = 0x89;
    pub const LONG1: u8 = 0x8a;
    pub const LONG4: u8 = 0x8b;
    pub const SHORT_BINUNICODE: u8 = 0x8c;
    pub const BINUNICODE8: u8 = 0x8d;
    pub const BINBYTES8: u8 = 0x8e;
    pub const EMPTY_SET: u8 = 0x8f;
    pub const ADDITEMS: u8 = 0x90;
    pub const FROZENSET: u8 = 0x91;
    pub const STACK_GLOBAL: u8 = 0x93;
    pub const MEMOIZE: u8 = 0x94;
    pub const FRAME: u8 = 0x95;
    pub const BYTEARRAY8: u8 = 0x96;
}

/// Python's own pickler recurses, and so cannot nest deeper than this.
const MAX_MARKS: usize = 1000;

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at the marks that are still open.
    marks: Vec<usize>,
    memo: Vec<Option<Value<'a>>>,
    nodes: Vec<Node<'a>>,
}

impl<'a> Machine<'a> {
    /// One opcode; the result of the pickle at STOP.
    fn step(&mut self) -> Result<Option<Value<'a>>, Fault> {
        let opcode = self.number(1)? as u8;
        let value = match opcode {
            op::STOP => {
                let root = self.pop()?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    return Err(Fault::broken("STOP with values left over"));
                }
                return Ok(Some(root));
            }
            op::FRAME => {
                let length = self.number(8)?;
                self.room(length)?;
                return Ok(None);
            }
            op::MARK => {
                if self.marks.len() == MAX_MARKS {
                    return Err(Fault::refused(format!("more than {MAX_MARKS} levels of nesting")));
                }
                self.marks.push(self.stack.len());
                return Ok(None);
            }
            op::POP => {
                // Python pops the mark where nothing is above it.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
                return Ok(None);
            }
            op::POP_MARK => {
                self.above_mark()?;
                return Ok(None);
            }
            op::MEMOIZE => return self.put(self.memo.len() as u64),
            op::BINPUT => {
                let index = self.number(1)?;
                return self.put(index);
            }
            op::LONG_BINPUT => {
                let index = self.number(4)?;
                return self.put(index);
            }
            op::APPEND => {
                let item = self.pop()?;
                return self.append(vec![item]);
            }
            op::APPENDS => {
                let items = self.above_mark()?;
                return self.append(items);
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                return self.set(&[key, value]);
            }
            op::SETITEMS => {
                let items = self.above_mark()?;
                return self.set(&items);
            }
            op::ADDITEMS => {
                self.above_mark()?;
                return match self.top()? {
                    Node::Set => Ok(None),
                    _ => Err(Fault::broken("items added to something that is not a set")),
                };
            }
            op::BUILD => {
                let new = self.pop()?;
                return match self.top()? {
                    Node::Object { state, .. } => {
                        *state = new;
                        Ok(None)
                    }
                    _ => Err(Fault::broken("a state for something that is not an object")),
                };
            }
            op::NONE => Value::None,
            op::NEWTRUE => Value::Bool(true),
            op::NEWFALSE => Value::Bool(false),
            op::BININT => Value::Int(self.number(4)? as u32 as i32 as i64),
            op::BININT1 => Value::Int(self.number(1)? as i64),
            op::BININT2 => Value::Int(self.number(2)? as i64),
            op::LONG1 => {
                let length = self.number(1)?;
                self.long(length)?
            }
            op::LONG4 => {
                let length = self.number(4)?;
                self.long(length)?
            }
            op::BINFLOAT => {
                self.take(8)?;
                Value::Float
            }
            op::SHORT_BINUNICODE => self.text(1)?,
            op::BINUNICODE => self.text(4)?,
            op::BINUNICODE8 => self.text(8)?,
            // Python 2's strings: text where they are text.
            op::SHORT_BINSTRING | op::BINSTRING => {
                let bytes = self.counted(if opcode == op::BINSTRING { 4 } else { 1 })?;
                std::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Str)
            }
            op::SHORT_BINBYTES => Value::Bytes(self.counted(1)?),
            op::BINBYTES => Value::Bytes(self.counted(4)?),
            op::BINBYTES8 | op::BYTEARRAY8 => Value::Bytes(self.counted(8)?),
            op::EMPTY_TUPLE => self.new_node(Node::Tuple(vec![])),
            op::EMPTY_LIST => self.new_node(Node::List(vec![])),
            op::EMPTY_DICT => self.new_node(Node::Dict(vec![])),
            op::EMPTY_SET => self.new_node(Node::Set),
            op::FROZENSET => {
                self.above_mark()?;
                self.new_node(Node::Set)
            }
            op::TUPLE => {
                let items = self.above_mark()?;
                self.new_node(Node::Tuple(items))
            }
            op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => {
                let mut items = vec![Value::None; (opcode - op::TUPLE1) as usize + 1];
                for item in items.iter_mut().rev() {
                    *item = self.pop()?;
                }
                self.new_node(Node::Tuple(items))
            }
            op::BINGET => {
                let index = self.number(1)?;
                self.memoised(index)?
            }
            op::LONG_BINGET => {
                let index = self.number(4)?;
                self.memoised(index)?
            }
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                Value::Constructor(allowed(module, name)?)
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (module, name) {
                    (Value::Str(module), Value::Str(name)) => Value::Constructor(allowed(module, name)?),
                    _ => return Err(Fault::refused("a constructor whose name is not text")),
                }
            }
            op::REDUCE | op::NEWOBJ => {
                let arguments = self.pop()?;
                let Value::Constructor(constructor) = self.pop()? else {
                    return Err(Fault::refused("a call of something that is not a constructor"));
                };
                let object = Node::Object { constructor, arguments, entries: vec![], state: Value::None };
                self.new_node(object)
            }
            op::BINPERSID => {
                let id = self.pop()?;
                self.new_node(Node::Outside(id))
            }
            op::INST | op::OBJ => {
                return Err(Fault::refused("the opcode INST or OBJ, which calls a class"));
            }
            op::EXT1 | op::EXT2 | op::EXT4 => {
                let what = "the opcode EXT1, EXT2 or EXT4, which calls a registered extension";
                return Err(Fault::refused(what));
            }
            other => {
                let what = format!("the opcode 0x{other:02x}, which no checkpoint of protocol 2 to 5 has");
                return Err(Fault::broken(what));
            }
        };
        self.stack.push(value);
        Ok(None)
    }

    fn room(&self, length: u64) -> Result<usize, Fault> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(length) {
            Ok(length) if length <= left => Ok(length),
            _ => Err(Fault::broken(format!("{length} bytes asked for where the file has {left} left"))),
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Fault> {
        let length = self.room(length)?;
        let taken = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(taken)
    }

    /// An unsigned little-endian number of up to 8 bytes.
    fn number(&mut self, size: u64) -> Result<u64, Fault> {
        Ok(self.take(size)?.iter().rev().fold(0, |number, byte| number << 8 | *byte as u64))
    }

    /// Bytes behind their length, a number of `size` bytes.
    fn counted(&mut self, size: u64) -> Result<&'a [u8], Fault> {
        let length = self.number(size)?;
        self.take(length)
    }

    fn text(&mut self, size: u64) -> Result<Value<'a>, Fault> {
        let bytes = self.counted(size)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Value::Str(text)),
            Err(_) => Err(Fault::broken("a text that is not UTF-8")),
        }
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return Err(Fault::broken("a name without an end"));
        };
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| Fault::broken("a name that is not UTF-8"))
    }

    fn long(&mut self, length: u64) -> Result<Value<'a>, Fault> {
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return Ok(Value::Long(bytes));
        }
        let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { -1 } else { 0 };
        Ok(Value::Int(bytes.iter().rev().fold(sign, |number, byte| number << 8 | *byte as i64)))
    }

    /// Never takes what lies under an open mark.
    fn pop(&mut self) -> Result<Value<'a>, Fault> {
        if self.stack.len() == self.marks.last().copied().unwrap_or(0) {
            return Err(Fault::broken("a value taken from an empty stack"));
        }
        Ok(self.stack.pop().expect("the stack is higher than the mark"))
    }

    fn above_mark(&mut self) -> Result<Vec<Value<'a>>, Fault> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(Fault::broken("a mark taken where none is open")),
        }
    }

    /// The container on top of the stack.
    fn top(&mut self) -> Result<&mut Node<'a>, Fault> {
        match self.stack.last() {
            Some(Value::Node(id)) if self.marks.last() != Some(&self.stack.len()) => {
                Ok(&mut self.nodes[*id as usize])
            }
            _ => Err(Fault::broken("a container needed, and none on the stack")),
        }
    }

    fn new_node(&mut self, node: Node<'a>) -> Value<'a> {
        self.nodes.push(node);
        Value::Node(self.nodes.len() as NodeId - 1)
    }

    /// Picklers number the memo in order, from 0, or from 1 as Python 2's
    /// `cPickle`; an index beyond the next one would only serve to make a reader
    /// allocate.
    fn put(&mut self, index: u64) -> Result<Option<Value<'a>>, Fault> {
        let value = self.pop()?;
        self.stack.push(value);
        if index == 1 && self.memo.is_empty() {
            self.memo.push(None);
        }
        let known = self.memo.len();
        match self.memo.get_mut(index as usize) {
            Some(entry) => *entry = Some(value),
            None if index == known as u64 => self.memo.push(Some(value)),
            None => return Err(Fault::broken(format!("memo entry {index} set where there are {known}"))),
        }
        Ok(None)
    }

    fn memoised(&self, index: u64) -> Result<Value<'a>, Fault> {
        let entry = self.memo.get(index as usize).copied();
        entry
            .flatten()
            .ok_or_else(|| Fault::broken(format!("memo entry {index} asked for, which was never set")))
    }

    fn append(&mut self, new: Vec<Value<'a>>) -> Result<Option<Value<'a>>, Fault> {
        match self.top()? {
            Node::List(items) => items.extend(new),
            _ => return Err(Fault::broken("items appended to something that is not a list")),
        }
        Ok(None)
    }

    fn set(&mut self, items: &[Value<'a>]) -> Result<Option<Value<'a>>, Fault> {
        let entries = match self.top()? {
            Node::Dict(entries) => entries,
            Node::Object {
                constructor: Constructor::OrderedDict | Constructor::EasyDict, entries, ..
            } => entries,
            _ => return Err(Fault::broken("entries set in something that is not a dictionary")),
        };
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(Fault::broken("a key without a value"));
        };
        entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(None)
    }
}

fn allowed(module: &str, name: &str) -> Result<Constructor, Fault> {
    let found = ALLOWED.iter().find(|(m, n, _)| (*m, *n) == (module, name));
    found
        .map(|(_, _, constructor)| *constructor)
        .ok_or_else(|| Fault::refused(format!("the name {} of the module {}", quote(name), quote(module))))
}
