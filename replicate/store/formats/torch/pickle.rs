//! Python's pickle format as data: protocols 0 to 5, interpreted without ever
//! calling anything. (The text opcodes of protocols 0 and 1 are read in CIFAR's
//! batches only: no checkpoint has them.)
//!
//! A pickle is a program for a stack machine that may call whatever Python can
//! import. Here a call is kept as a [`Node::Object`], a name with arguments, and
//! only the names in [`super::allowed`] can be said at all; every other name is an
//! error. What the objects mean is decided afterwards, in `torch` and `names`,
//! and for the batches of CIFAR's python files in `data::cifar::python`.
//!
//! The machine is ours because the crates at hand do not serve: candle's knows
//! the opcodes of a flat state dict only, and a general unpickler either drops
//! the names of the constructors or puts no bound on what a file may cost. Here
//! strings and payloads are borrowed from the file, every opcode does a bounded
//! amount of work, and [`Budget`] bounds the number of opcodes.

use std::borrow::Cow;

pub(crate) use super::allowed::Constructor;
use super::machine::{Machine, op};
use super::{Budget, Fault};

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
    /// A text or bytes that the file has in another spelling.
    Text(String),
    Bytes(Vec<u8>),
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
    pub(super) nodes: Vec<Node<'a>>,
    pub root: Value<'a>,
    pub protocol: u8,
    /// Where the bytes behind the pickle begin.
    pub end: usize,
}

impl<'a> Pickle<'a> {
    /// The pickle of protocol 2 to 5 that begins at byte `at`.
    pub(super) fn read(bytes: &'a [u8], at: usize, budget: &mut Budget) -> Result<Pickle<'a>, Fault> {
        let mut machine = Machine::new(bytes, at);
        let protocol = match machine.take(2)? {
            [op::PROTO, protocol @ 2..=5] => *protocol,
            [op::PROTO, protocol] => return Err(Fault::broken(format!("a pickle of protocol {protocol}"))),
            _ => return Err(Fault::broken(format!("no pickle at byte {at}"))),
        };
        machine.run(protocol, budget)
    }

    /// A dictionary that is all of `bytes`, of any protocol. The first two do not say so.
    pub(super) fn read_any(bytes: &'a [u8], budget: &mut Budget) -> Result<Pickle<'a>, Fault> {
        let mut machine = Machine::new(bytes, 0);
        machine.any = true;
        match bytes {
            [op::PROTO, protocol @ 0..=5, ..] => {
                machine.at = 2;
                machine.run(*protocol, budget)
            }
            [op::MARK | op::EMPTY_DICT | op::GLOBAL, ..] => machine.run(0, budget),
            _ => Pickle::read(bytes, 0, budget),
        }
    }

    pub fn node(&self, id: NodeId) -> &Node<'a> {
        &self.nodes[id as usize]
    }

    pub fn nodes(&self) -> &[Node<'a>] {
        &self.nodes
    }

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

    /// At most `most` bytes, in any of the forms in which the protocols and either
    /// Python write them; texts stand for the bytes that they were in Python 2.
    /// (Many objects may share one text: decoding has a bound.)
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
}

impl<'a> Pickle<'a> {
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
        let is_key = |(k, _): &&(Value<'a>, Value<'a>)| self.text(*k) == Some(key);
        self.entries(dict)?.iter().find(is_key).map(|(_, value)| *value)
    }
}
