//! Python's pickle format, written: the opcodes that Python's own pickler
//! chooses, of protocol 2 (inside torch's streams) or 4 (EDM's snapshots).

use std::collections::HashMap;

/// A class or function: module and name.
pub type Global = (&'static str, &'static str);

/// What Python would have in memory.
#[derive(Clone)]
pub enum Object {
    None,
    Bool(bool),
    Int(i32),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Global(Global),
    Tuple(Vec<Object>),
    List(Vec<Object>),
    Dict(Vec<(String, Object)>),
    EmptySet,
    /// A function's call, as objects that reduce to one are written.
    Call(Global, Vec<Object>),
    /// An instance of a class that reduces to nothing else.
    New(Global),
    /// An object of one of the two kinds above, and its entries as a dictionary.
    Filled(Box<Object>, Vec<(String, Object)>),
    /// An object of one of the two kinds above, and its state.
    Built(Box<Object>, Box<Object>),
    /// A persistent id: something outside the pickle.
    Outside(Box<Object>),
}

pub fn text(text: &str) -> Object {
    Object::Text(text.into())
}

/// A number that fits, as every size here does.
pub fn int(n: usize) -> Object {
    Object::Int(n.try_into().unwrap())
}

pub fn named<const N: usize>(entries: [(&str, Object); N]) -> Vec<(String, Object)> {
    entries.into_iter().map(|(name, object)| (name.to_string(), object)).collect()
}

/// The whole pickle of an object.
pub fn pickle(object: &Object, protocol: u8) -> Vec<u8> {
    assert!(protocol == 2 || protocol == 4, "protocol {protocol}");
    let mut pickler =
        Pickler { protocol, done: vec![0x80, protocol], frame: vec![], memo: HashMap::new(), memoised: 0 };
    pickler.save(object);
    pickler.frame.push(b'.');
    pickler.end_frame();
    pickler.done
}

/// Python closes a frame at this length, and puts longer bytes between frames.
const FRAME: usize = 64 << 10;
/// Python sets dictionaries and lists in batches of this length.
const BATCH: usize = 1000;

struct Pickler<'a> {
    protocol: u8,
    done: Vec<u8>,
    /// What follows `done`; protocol 4 announces its length.
    frame: Vec<u8>,
    /// Texts (with no module) and globals that are on record already.
    memo: HashMap<(&'static str, &'a str), u32>,
    memoised: u32,
}

impl<'a> Pickler<'a> {
    fn save(&mut self, object: &'a Object) {
        if self.frame.len() >= FRAME {
            self.end_frame();
        }
        match object {
            Object::None => self.frame.push(b'N'),
            Object::Bool(value) => self.frame.push(0x89 - u8::from(*value)),
            Object::Int(n) => self.int(*n),
            Object::Float(x) => {
                self.frame.push(b'G');
                self.frame.extend(x.to_be_bytes());
            }
            Object::Text(text) => self.text(text),
            Object::Bytes(bytes) => self.bytes(bytes),
            Object::Global(global) => self.global(*global),
            Object::Tuple(items) => self.tuple(items),
            Object::List(items) => {
                self.frame.push(b']');
                self.memoise();
                self.batches(items, *b"ae", |pickler, item| pickler.save(item));
            }
            Object::Dict(entries) => {
                self.frame.push(b'}');
                self.memoise();
                self.entries(entries);
            }
            Object::EmptySet => {
                self.frame.push(0x8f);
                self.memoise();
            }
            Object::Call(function, arguments) => {
                self.global(*function);
                self.tuple(arguments);
                self.frame.push(b'R');
                self.memoise();
            }
            Object::New(class) => {
                self.global(*class);
                self.frame.extend([b')', 0x81]);
                self.memoise();
            }
            Object::Filled(object, entries) => {
                self.save(object);
                self.entries(entries);
            }
            Object::Built(object, state) => {
                self.save(object);
                self.save(state);
                self.frame.push(b'b');
            }
            Object::Outside(id) => {
                self.save(id);
                self.frame.push(b'Q');
            }
        }
    }

    fn int(&mut self, n: i32) {
        if let Ok(n) = u8::try_from(n) {
            self.frame.extend([b'K', n]);
        } else if let Ok(n) = u16::try_from(n) {
            self.frame.push(b'M');
            self.frame.extend(n.to_le_bytes());
        } else {
            self.frame.push(b'J');
            self.frame.extend(n.to_le_bytes());
        }
    }

    fn text(&mut self, text: &'a str) {
        if self.recalled("", text) {
            return;
        }
        match u8::try_from(text.len()) {
            Ok(length) if self.protocol == 4 => self.frame.extend([0x8c, length]),
            _ => self.long(b'X', text.len()),
        }
        self.frame.extend(text.as_bytes());
        self.record("", text);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        assert_eq!(self.protocol, 4, "protocol 2 has no bytes");
        match u8::try_from(bytes.len()) {
            Ok(length) => self.frame.extend([b'C', length]),
            Err(_) if bytes.len() < FRAME => self.long(b'B', bytes.len()),
            Err(_) => {
                self.end_frame();
                self.long(b'B', bytes.len());
                self.done.append(&mut self.frame);
                self.done.extend(bytes);
                return self.memoise();
            }
        }
        self.frame.extend(bytes);
        self.memoise();
    }

    fn global(&mut self, (module, name): Global) {
        if self.recalled(module, name) {
            return;
        }
        if self.protocol == 4 {
            self.text(module);
            self.text(name);
            self.frame.push(0x93);
        } else {
            self.frame.extend(format!("c{module}\n{name}\n").bytes());
        }
        self.record(module, name);
    }

    fn tuple(&mut self, items: &'a [Object]) {
        match items.len() {
            0 => return self.frame.push(b')'),
            1..=3 => {
                items.iter().for_each(|item| self.save(item));
                self.frame.push(0x84 + items.len() as u8);
            }
            _ => {
                self.frame.push(b'(');
                items.iter().for_each(|item| self.save(item));
                self.frame.push(b't');
            }
        }
        self.memoise();
    }

    fn entries(&mut self, entries: &'a [(String, Object)]) {
        self.batches(entries, *b"su", |pickler, (key, value)| {
            pickler.text(key);
            pickler.save(value);
        });
    }

    /// Adds items to the container on the stack, with the first opcode where it
    /// is one item, else with the second.
    fn batches<T>(&mut self, items: &'a [T], opcodes: [u8; 2], save: impl Fn(&mut Self, &'a T)) {
        for batch in items.chunks(BATCH) {
            match batch {
                [item] => {
                    save(self, item);
                    self.frame.push(opcodes[0]);
                }
                _ => {
                    self.frame.push(b'(');
                    batch.iter().for_each(|item| save(self, item));
                    self.frame.push(opcodes[1]);
                }
            }
        }
    }

    fn long(&mut self, opcode: u8, length: usize) {
        self.frame.push(opcode);
        self.frame.extend(u32::try_from(length).unwrap().to_le_bytes());
    }

    /// Whether it is on record, and then on the stack.
    fn recalled(&mut self, module: &'static str, name: &'a str) -> bool {
        let Some(&index) = self.memo.get(&(module, name)) else { return false };
        match u8::try_from(index) {
            Ok(index) => self.frame.extend([b'h', index]),
            Err(_) => {
                self.frame.push(b'j');
                self.frame.extend(index.to_le_bytes());
            }
        }
        true
    }

    fn record(&mut self, module: &'static str, name: &'a str) {
        self.memo.insert((module, name), self.memoised);
        self.memoise();
    }

    /// Puts what is on the stack on record.
    fn memoise(&mut self) {
        match u8::try_from(self.memoised) {
            _ if self.protocol == 4 => self.frame.push(0x94),
            Ok(index) => self.frame.extend([b'q', index]),
            Err(_) => {
                self.frame.push(b'r');
                self.frame.extend(self.memoised.to_le_bytes());
            }
        }
        self.memoised += 1;
    }

    fn end_frame(&mut self) {
        // Python announces no frame that is shorter than this.
        if self.protocol == 4 && self.frame.len() >= 4 {
            self.done.push(0x95);
            self.done.extend((self.frame.len() as u64).to_le_bytes());
        }
        self.done.append(&mut self.frame);
    }
}
