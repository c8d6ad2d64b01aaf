//! The stack machine of Python's pickles. It builds the graph of [`super::pickle`] and calls
//! nothing.

use std::collections::HashMap;

use super::allowed::{Constructor, constructor};
use super::opcodes as op;
use super::pickle::{Node, NodeId, Pickle, Value};
use super::{Budget, Fault, quote};

/// Largest number of open marks. Python's own pickler recurses, so it cannot nest deeper.
const MAX_MARKS: usize = 1000;

impl<'a> Pickle<'a> {
    /// Reads the pickle of protocol 2 to 5 that begins at byte `at`.
    pub(super) fn read(bytes: &'a [u8], at: usize, budget: &mut Budget) -> Result<Pickle<'a>, Fault> {
        let mut machine = Machine::new(bytes, at);
        let protocol = match machine.take(2)? {
            [op::PROTO, protocol @ 2..=5] => *protocol,
            [op::PROTO, protocol] => return Err(Fault::broken(format!("a pickle of protocol {protocol}"))),
            _ => return Err(Fault::broken(format!("no pickle at byte {at}"))),
        };
        machine.run(protocol, budget)
    }

    /// Reads a dictionary that fills `bytes`, in any protocol. Protocols 0 and 1 do not state their
    /// number.
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
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// True if the opcodes of every protocol are accepted.
    any: bool,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
    /// One more than the largest index in the memo.
    next: u64,
    nodes: Vec<Node<'a>>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8], at: usize) -> Machine<'a> {
        let (stack, marks, nodes) = (vec![], vec![], vec![]);
        Machine { bytes, at, any: false, stack, marks, memo: HashMap::new(), next: 0, nodes }
    }

    fn run(mut self, protocol: u8, budget: &mut Budget) -> Result<Pickle<'a>, Fault> {
        let machine = &mut self;
        loop {
            let begin = machine.at;
            budget.opcode()?;
            if let Some(root) = machine.step(budget).map_err(|fault| fault.at_byte(begin))? {
                return Ok(Pickle { nodes: self.nodes, root, protocol, end: self.at });
            }
        }
    }

    /// Executes one opcode; returns the result of the pickle at STOP.
    fn step(&mut self, budget: &mut Budget) -> Result<Option<Value<'a>>, Fault> {
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
                // Python pops the mark if nothing is above it.
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
            op::MEMOIZE => return self.put(self.next),
            op::BINPUT | op::LONG_BINPUT => {
                let index = self.number(if opcode == op::BINPUT { 1 } else { 4 })?;
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
            op::LONG1 | op::LONG4 => {
                let bytes = self.counted(if opcode == op::LONG1 { 1 } else { 4 })?;
                long(bytes)
            }
            op::BINFLOAT => {
                self.take(8)?;
                Value::Float
            }
            op::SHORT_BINUNICODE => self.text(1)?,
            op::BINUNICODE => self.text(4)?,
            op::BINUNICODE8 => self.text(8)?,
            // Strings of Python 2: text if they are valid UTF-8, else bytes.
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
            op::BINGET | op::LONG_BINGET => {
                let index = self.number(if opcode == op::BINGET { 1 } else { 4 })?;
                self.memoised(index)?
            }
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                Value::Constructor(named(module, name)?)
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (module, name) {
                    (Value::Str(module), Value::Str(name)) => Value::Constructor(named(module, name)?),
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
            op::NEXT_BUFFER | op::READONLY_BUFFER if self.any => {
                return Err(Fault::refused("data that lie outside of the file (out-of-band buffers)"));
            }
            op::PUT if self.any => {
                let index = self.decimal()?;
                return self.put(index);
            }
            op::GET if self.any => {
                let index = self.decimal()?;
                self.memoised(index)?
            }
            op::DUP if self.any => {
                let value = self.pop()?;
                self.stack.push(value);
                value
            }
            op::INT if self.any => match self.line()? {
                text @ ("00" | "01") => Value::Bool(text == "01"),
                text => integer(text)?,
            },
            op::LONG if self.any => integer(self.line()?.trim_end_matches('L'))?,
            op::FLOAT if self.any => {
                self.line()?;
                Value::Float
            }
            op::STRING if self.any => self.python2_string(budget)?,
            op::UNICODE if self.any => self.escaped_text(budget)?,
            op::LIST if self.any => {
                let items = self.above_mark()?;
                self.new_node(Node::List(items))
            }
            op::DICT if self.any => {
                let items = self.above_mark()?;
                let dict = self.new_node(Node::Dict(vec![]));
                self.stack.push(dict);
                return self.set(&items);
            }
            op::INST | op::OBJ => {
                return Err(Fault::refused("the opcode INST or OBJ, which calls a class"));
            }
            op::EXT1 | op::EXT2 | op::EXT4 => {
                let what = "the opcode EXT1, EXT2 or EXT4, which calls a registered extension";
                return Err(Fault::refused(what));
            }
            other => {
                let what = format!("the opcode 0x{other:02x}, which no such pickle of protocol 2 to 5 has");
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

    /// Reads an unsigned little-endian number of up to 8 bytes.
    fn number(&mut self, size: u64) -> Result<u64, Fault> {
        Ok(self.take(size)?.iter().rev().fold(0, |number, byte| number << 8 | *byte as u64))
    }

    /// Reads bytes after their length, a number of `size` bytes.
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

    fn line_bytes(&mut self) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return Err(Fault::broken("a name without an end"));
        };
        self.at += length + 1;
        Ok(&rest[..length])
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        std::str::from_utf8(self.line_bytes()?).map_err(|_| Fault::broken("a name that is not UTF-8"))
    }

    fn decimal(&mut self) -> Result<u64, Fault> {
        self.line()?.parse().map_err(|_| Fault::broken("a memo entry without a number"))
    }

    /// Reads `'…'` with the escapes of Python 2.
    fn python2_string(&mut self, budget: &mut Budget) -> Result<Value<'a>, Fault> {
        let line = self.line_bytes()?;
        let quoted = match line {
            [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
            _ => return Err(Fault::broken("a string without quotes")),
        };
        if !quoted.contains(&b'\\') {
            return Ok(std::str::from_utf8(quoted).map_or(Value::Bytes(quoted), Value::Str));
        }
        budget.bytes(quoted.len())?;
        let (mut bytes, mut rest) = (Vec::with_capacity(quoted.len()), quoted.iter().copied());
        while let Some(byte) = rest.next() {
            let escape = if byte == b'\\' { rest.next() } else { None };
            bytes.push(match escape {
                None => byte,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'x') => {
                    let mut digit = || (rest.next()? as char).to_digit(16);
                    match (digit(), digit()) {
                        (Some(high), Some(low)) => (16 * high + low) as u8,
                        _ => return Err(Fault::broken("a string with a broken escape")),
                    }
                }
                Some(other @ (b'\\' | b'\'' | b'"')) => other,
                Some(_) => return Err(Fault::broken("a string with an unknown escape")),
            });
        }
        Ok(self.new_node(Node::Bytes(bytes)))
    }

    /// Reads Latin-1 text, in which other characters are `\uXXXX` and `\UXXXXXXXX`.
    fn escaped_text(&mut self, budget: &mut Budget) -> Result<Value<'a>, Fault> {
        let line = self.line_bytes()?;
        if line.is_ascii() && !line.contains(&b'\\') {
            return Ok(Value::Str(std::str::from_utf8(line).expect("ASCII")));
        }
        // A Latin-1 character takes up to two bytes in UTF-8.
        budget.bytes(2 * line.len())?;
        let (mut text, mut rest) = (String::with_capacity(2 * line.len()), line);
        while let Some((&byte, behind)) = rest.split_first() {
            let digits = match rest {
                [b'\\', b'u', behind @ ..] => behind.split_at_checked(4),
                [b'\\', b'U', behind @ ..] => behind.split_at_checked(8),
                _ => {
                    text.push(byte as char);
                    rest = behind;
                    continue;
                }
            };
            let code = digits.and_then(|(digits, behind)| {
                rest = behind;
                u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
            });
            text.push(
                code.and_then(char::from_u32).ok_or_else(|| Fault::broken("a text with a broken escape"))?,
            );
        }
        Ok(self.new_node(Node::Text(text)))
    }

    /// Pops a value; never one below an open mark.
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

    /// Returns the container on top of the stack.
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

    /// Stores the top of the stack in the memo. Picklers number the memo in order, from 0, or from
    /// 1 in Python 2's `cPickle`; only `pickletools.optimize` leaves entries out.
    fn put(&mut self, index: u64) -> Result<Option<Value<'a>>, Fault> {
        let value = self.pop()?;
        self.stack.push(value);
        let begins = index == 1 && self.next == 0;
        if index > self.next && !begins && !self.any {
            return Err(Fault::broken(format!("memo entry {index} set where there are {}", self.next)));
        }
        self.next = self.next.max(index.saturating_add(1));
        self.memo.insert(index, value);
        Ok(None)
    }

    fn memoised(&self, index: u64) -> Result<Value<'a>, Fault> {
        let entry = self.memo.get(&index).copied();
        entry.ok_or_else(|| Fault::broken(format!("memo entry {index} asked for, which was never set")))
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

/// Reads an integer from its little-endian two's complement.
fn long(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::Long(bytes);
    }
    let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { -1 } else { 0 };
    Value::Int(bytes.iter().rev().fold(sign, |number, byte| number << 8 | *byte as i64))
}

/// Parses an integer. One that is too large to matter here becomes a number without a value.
fn integer(text: &str) -> Result<Value<'static>, Fault> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    match text.parse() {
        Ok(number) => Ok(Value::Int(number)),
        Err(_) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Value::Float),
        Err(_) => Err(Fault::broken("a number without digits")),
    }
}

fn named(module: &str, name: &str) -> Result<Constructor, Fault> {
    constructor(module, name)
        .ok_or_else(|| Fault::refused(format!("the name {} of the module {}", quote(name), quote(module))))
}
