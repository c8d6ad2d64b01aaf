//! Parameters of a network: while it is built, and as its operations read them.

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder};
use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

/// Index of a parameter in the list of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param(pub usize);

/// Gradients of parameters, from the backward passes of a network to [`Bypass::gradients`]. The
/// network's [`Params`](crate::network::params::Params) own it, and every pass holds it. GPUs use it, and
/// large networks on a CPU: candle would add each gradient to zeros, which costs two passes over it.
#[derive(Clone, Default)]
pub struct Bypass(Arc<Mutex<Vec<(Tensor, Tensor)>>>);

impl Bypass {
    /// Leaves parameters with their gradients for [`Bypass::gradients`].
    pub fn leave(&self, gradients: impl IntoIterator<Item = (Tensor, Tensor)>) {
        self.0.lock().expect("nobody panicked").extend(gradients);
    }

    fn take(&self) -> Vec<(Tensor, Tensor)> {
        std::mem::take(&mut self.0.lock().expect("nobody panicked"))
    }

    /// Computes the gradients of `loss`: those from candle, and those that passes leave here. If a
    /// parameter is computed from other tensors, their gradients are returned instead.
    ///
    /// # Errors
    /// If an operation has no gradient, or if its gradient was computed before.
    pub fn gradients(&self, loss: &Tensor) -> Result<GradStore> {
        // A backward pass that failed may have left some.
        drop(self.take());
        let mut gradients = loss.backward()?;
        let (given, made): (Vec<_>, Vec<_>) = self.take().into_iter().partition(|(p, _)| p.is_variable());
        for (parameter, more) in given {
            let sum = match gradients.remove(&parameter) {
                Some(sum) => (sum + more)?,
                None => more,
            };
            gradients.insert(&parameter, sum);
        }
        // The gradient of sum(parameter * its gradient) is that of the tensors from which it is
        // computed.
        let products =
            made.iter().map(|(made, more)| (made * more)?.sum_all()).collect::<Result<Vec<_>>>()?;
        if !products.is_empty() {
            gradients.extend(Tensor::stack(&products, 0)?.sum_all()?.backward()?)?;
        }
        Ok(gradients)
    }
}

/// The parameters of a network in the order of [`Param`], the type in which the network keeps
/// activations on a GPU, and where its backward passes leave gradients.
#[derive(Clone)]
pub struct Parameters {
    tensors: Vec<Tensor>,
    maps: DType,
    bypass: Bypass,
}

impl Parameters {
    /// Parameters of a network with activations of the type `maps` on a GPU.
    pub fn new(tensors: Vec<Tensor>, maps: DType) -> Parameters {
        Parameters { tensors, maps, bypass: Bypass::default() }
    }

    /// Type of the activations. On a CPU they are always float32.
    pub fn maps(&self) -> DType {
        self.maps
    }

    /// The same parameters for a network with activations in float32.
    pub fn in_float32(self) -> Parameters {
        Parameters { maps: DType::F32, ..self }
    }

    /// Where a backward pass leaves the gradients of parameters.
    pub fn bypass(&self) -> &Bypass {
        &self.bypass
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

/// Source of parameters by name: candle's `VarBuilder`, the type of the activations of the network
/// that is built, and where its backward passes leave gradients.
#[derive(Clone)]
pub struct Variables<'a> {
    vb: VarBuilder<'a>,
    maps: DType,
    bypass: Bypass,
}

impl<'a> Variables<'a> {
    pub fn new(vb: VarBuilder<'a>, maps: DType, bypass: Bypass) -> Variables<'a> {
        Variables { vb, maps, bypass }
    }

    /// Returns the source of the parameters whose names begin with `name` and a dot.
    pub fn pp(&self, name: impl ToString) -> Variables<'a> {
        Variables { vb: self.vb.pp(name), ..self.clone() }
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
        let Variables { maps, bypass, .. } = self.variables.clone();
        Parameters { tensors: self.list.borrow().clone(), maps, bypass }
    }
}
