//! Parameters of a network: while it is built, and as its operations read them.

use candle_core::{DType, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder};
use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;

/// Index of a parameter in the list of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param(pub usize);

/// The parameters of a network in the order of [`Param`], and the type in which the network keeps
/// activations on a GPU.
#[derive(Clone)]
pub struct Parameters {
    tensors: Vec<Tensor>,
    maps: DType,
}

impl Parameters {
    /// Parameters of a network with activations of the type `maps` on a GPU.
    pub fn new(tensors: Vec<Tensor>, maps: DType) -> Parameters {
        Parameters { tensors, maps }
    }

    /// Type of the activations. On a CPU they are always float32.
    pub fn maps(&self) -> DType {
        self.maps
    }

    /// The same parameters for a network with activations in float32.
    pub fn in_float32(self) -> Parameters {
        Parameters { maps: DType::F32, ..self }
    }

    /// Returns `tensors` as the parameters of a part of this network.
    pub fn part(&self, tensors: Vec<Tensor>) -> Parameters {
        Parameters { tensors, ..self.clone() }
    }
}

impl Deref for Parameters {
    type Target = [Tensor];

    fn deref(&self) -> &[Tensor] {
        &self.tensors
    }
}

/// Source of parameters by name: candle's `VarBuilder`, and the type of the activations of the
/// network that is built.
#[derive(Clone)]
pub struct Variables<'a> {
    vb: VarBuilder<'a>,
    maps: DType,
}

impl<'a> Variables<'a> {
    pub fn new(vb: VarBuilder<'a>, maps: DType) -> Variables<'a> {
        Variables { vb, maps }
    }

    /// Returns the source of the parameters whose names begin with `name` and a dot.
    pub fn pp(&self, name: impl ToString) -> Variables<'a> {
        Variables { vb: self.vb.pp(name), maps: self.maps }
    }

    /// Creates or reads a parameter.
    pub fn get(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
        self.vb.get_with_hints(shape, name, init)
    }
}

/// Collects the parameters of a network while it is built.
#[derive(Clone)]
pub struct Builder<'a> {
    variables: Variables<'a>,
    list: Rc<RefCell<Vec<Tensor>>>,
}

impl<'a> Builder<'a> {
    /// Starts with an empty list.
    pub fn new(variables: Variables<'a>) -> Builder<'a> {
        Builder { variables, list: Rc::default() }
    }

    /// Returns a builder for the parameters whose names begin with `name` and a dot.
    pub fn pp(&self, name: impl ToString) -> Builder<'a> {
        Builder { variables: self.variables.pp(name), list: self.list.clone() }
    }

    /// Adds a parameter to the list; creates or reads it through the source.
    pub fn get(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Param> {
        let tensor = self.variables.get(shape, name, init)?;
        let mut list = self.list.borrow_mut();
        list.push(tensor);
        Ok(Param(list.len() - 1))
    }

    /// Returns the collected parameters in the order of [`Builder::get`].
    pub fn parameters(&self) -> Parameters {
        Parameters { tensors: self.list.borrow().clone(), maps: self.variables.maps }
    }
}
