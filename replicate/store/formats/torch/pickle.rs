//! Python's pickle format as data: protocols 0 to 5, interpreted without calling anything. (The
//! text opcodes of protocols 0 and 1 are accepted only in CIFAR's batches; no checkpoint has them.)
//!
//! A pickle is a program for a stack machine that may call anything that Python can import. Here a
//! call is kept as a [`Node::Object`], a name with arguments, and only the names in
//! [`super::allowed`] are accepted. The meaning of the objects is decided later, in `torch` and
//! `names`, and for CIFAR's python files in `data::cifar::python`.
//!
//! The machine is our own, because available crates do not fit: candle's knows only the opcodes of
//! a flat state dict, and general unpicklers either drop the names of the constructors or do not
//! bound the cost of a file. Here strings and payloads are borrowed from the file, every opcode
//! does a bounded amount of work, and [`Budget`] bounds the number of opcodes.

use std::borrow::Cow;

pub(crate) use super::allowed::Constructor;

/// Index of a node in its pickle.
pub(crate) type NodeId = u32;

/// A value on the stack. It is small: containers are nodes, so two references to one container
/// remain one container.
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
    /// A text or bytes that are encoded differently in the file.
    Text(String),
    Bytes(Vec<u8>),
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    /// A set, whose members are not kept.
    Set,
    /// A call that was not executed.
    Object {
        constructor: Constructor,
        arguments: Value<'a>,
        entries: Vec<(Value<'a>, Value<'a>)>,
        state: Value<'a>,
    },
    /// A persistent id, which refers to something outside the pickle.
    Outside(Value<'a>),
}

/// Content of one pickle.
pub(crate) struct Pickle<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    pub root: Value<'a>,
    pub protocol: u8,
    /// Position of the first byte after the pickle.
    pub end: usize,
}

impl<'a> Pickle<'a> {
    /// Returns a node by its index.
    pub fn node(&self, id: NodeId) -> &Node<'a> {
        &self.nodes[id as usize]
    }

    /// All nodes, in the order in which they were made.
    pub fn nodes(&self) -> &[Node<'a>] {
        &self.nodes
    }

    /// Returns the text of a value, or `None` if it is not text.
    pub fn text<'p>(&'p self, value: Value<'a>) -> Option<&'p str> {
        match value {
            Value::Str(text) => Some(text),
            Value::Node(id) => match self.node(id) {
                Node::Text(text) => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns at most `most` bytes, in any form in which the protocols and Python 2 or 3 write
    /// them; texts stand for the bytes that they were in Python 2. The bound is needed because many
    /// objects may share one text.
    pub fn bytes<'p>(&'p self, value: Value<'a>, most: usize) -> Option<Cow<'p, [u8]>> {
        if let Some(text) = self.text(value) {
            return Some(text.as_bytes().into());
        }
        let id = match value {
            Value::Bytes(bytes) => return Some(bytes.into()),
            Value::Node(id) => id,
            _ => return None,
        };
        let (constructor, arguments) = match self.node(id) {
            Node::Bytes(bytes) => return Some(bytes.into()),
            Node::Object { constructor, arguments, .. } => (constructor, self.tuple(*arguments)?),
            _ => return None,
        };
        match (constructor, arguments) {
            (Constructor::Bytes, []) => Some(Cow::Borrowed(&[])),
            (Constructor::Bytes, [Value::Bytes(bytes)]) => Some(Cow::Borrowed(bytes)),
            (Constructor::Encode | Constructor::Bytes, [text, encoding]) => {
                let is_latin1 = matches!(self.text(*encoding)?, "latin1" | "latin-1");
                let text = self.text(*text).filter(|text| is_latin1 && text.len() / 2 <= most)?;
                text.chars().map(|c| u8::try_from(c).ok()).collect::<Option<Vec<u8>>>().map(Cow::Owned)
            }
            _ => None,
        }
    }

    /// Returns the members of a tuple, or `None` if it is not a tuple.
    pub fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Node(id) => match self.node(id) {
                Node::Tuple(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns the entries of a `dict`, `OrderedDict` or `EasyDict`.
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

    /// Returns the value of a dictionary under a text key.
    pub fn get(&self, dict: Value<'a>, key: &str) -> Option<Value<'a>> {
        let is_key = |(k, _): &&(Value<'a>, Value<'a>)| self.text(*k) == Some(key);
        self.entries(dict)?.iter().find(is_key).map(|(_, value)| *value)
    }
}
