//! Convolution with stride 1, same size and a 1x1 or 3x3 kernel, through cuDNN.

use super::compile::kernel;
use super::{Arg, Element, by_type, count, elements, tensor, uninitialised, with_args};
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnConvolutionBwdDataAlgo_t, cudnnConvolutionBwdFilterAlgo_t, cudnnConvolutionFwdAlgo_t,
    cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t,
};
use candle_core::cuda_backend::cudarc::cudnn::{
    ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, Cudnn, FilterDescriptor,
    TensorDescriptor,
};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, PushKernelArg};
use candle_core::cuda_backend::{CudaDevice, DeviceId, WrapErr};
use candle_core::{DType, Result, Shape, Tensor, bail, builder_arg};
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// Converts `scale` times weights (O, C, k, k) in float32, k odd, to cuDNN's layout (O, k, k, C),
/// rounded to the type of `like`.
pub fn filters(w: &Tensor, like: &Tensor, scale: f32) -> Result<Tensor> {
    with_args([w], |[w]| by_type!(like, channels_last(w, scale)))
}

/// Computes x * w, (B, H, W, O), from `x` (B, H, W, C) and `w` from [`filters`]. Products are
/// summed in float32.
pub fn conv2d(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    with_args([x, w], |[x, w]| by_type!(x, forward(x, w)))
}

/// Computes the gradient of x from `dy` (B, H, W, O), in the type of `dy`; `w` is from [`filters`].
pub fn data_gradient(w: &Tensor, dy: &Tensor) -> Result<Tensor> {
    with_args([w, dy], |[w, dy]| by_type!(dy, to_data(w, dy)))
}

/// Computes `scale` times the gradient of weights of shape `w`, (O, C, k, k), in float32. cuDNN
/// rounds the sum to the type of `x` and `dy` first.
pub fn filter_gradient(x: &Tensor, w: &Shape, dy: &Tensor, scale: f32) -> Result<Tensor> {
    with_args([x, dy], |[x, dy]| by_type!(x, to_filter(x, w, dy, scale)))
}

// The algorithms are fixed: all three sum in one order, and cuDNN's heuristics could choose others
// on another GPU.
const FORWARD: cudnnConvolutionFwdAlgo_t =
    cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
const DATA: cudnnConvolutionBwdDataAlgo_t = cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
const FILTER: cudnnConvolutionBwdFilterAlgo_t =
    cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;

/// Sizes of one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Geometry {
    batch: usize,
    inputs: usize,
    outputs: usize,
    height: usize,
    width: usize,
    kernel: usize,
}

/// cuDNN's descriptors of a convolution, created once.
struct Plan<T> {
    convolution: ConvDescriptor<f32>,
    x: TensorDescriptor<T>,
    w: FilterDescriptor<T>,
    y: TensorDescriptor<T>,
}

impl<T: Element> Plan<T> {
    fn new(g: Geometry, cudnn: &Arc<Cudnn>) -> Result<Plan<T>> {
        let pad = (g.kernel / 2) as i32;
        let mode = cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let mut convolution = cudnn.create_conv2d::<f32>([pad, pad], [1, 1], [1, 1], mode)?;
        // The default would round float32 operands to TF32.
        convolution.set_math_type(match T::DTYPE {
            DType::F32 => cudnnMathType_t::CUDNN_FMA_MATH,
            _ => cudnnMathType_t::CUDNN_DEFAULT_MATH,
        })?;
        let order = cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let sides = |channels: usize| [g.batch, channels, g.height, g.width].map(|side| side as i32);
        let x = cudnn.create_4d_tensor::<T>(order, sides(g.inputs))?;
        let y = cudnn.create_4d_tensor::<T>(order, sides(g.outputs))?;
        let w = cudnn.create_4d_filter::<T>(
            order,
            [g.outputs, g.inputs, g.kernel, g.kernel].map(|side| side as i32),
        )?;
        Ok(Plan { convolution, x, w, y })
    }
}

/// cuDNN of one device on one thread. Its handles must not leave the thread.
struct Library {
    cudnn: Arc<Cudnn>,
    plans: HashMap<(Geometry, DType), Rc<dyn Any>>,
    /// The largest workspace that any pass has needed. Passes can share it: all work of a device is
    /// on one stream, so one ends before the next begins.
    workspace: CudaSlice<u8>,
}

impl Library {
    fn plan<T: Element>(&mut self, g: Geometry) -> Result<Rc<Plan<T>>> {
        let key = (g, T::DTYPE);
        if let Some(plan) = self.plans.get(&key) {
            return Ok(plan.clone().downcast().expect("the type is part of the key"));
        }
        let plan = Rc::new(Plan::<T>::new(g, &self.cudnn)?);
        self.plans.insert(key, plan.clone());
        Ok(plan)
    }

    fn reserve(&mut self, bytes: usize, device: &CudaDevice) -> Result<()> {
        if self.workspace.len() < bytes {
            self.workspace = uninitialised(bytes, device)?;
        }
        Ok(())
    }
}

/// Calls `f` with the device's cuDNN.
fn with_library<R>(device: &CudaDevice, f: impl FnOnce(&mut Library) -> Result<R>) -> Result<R> {
    thread_local! {
        static LIBRARIES: RefCell<HashMap<DeviceId, Library>> = RefCell::default();
    }
    LIBRARIES.with_borrow_mut(|libraries| {
        if let Some(library) = libraries.get_mut(&device.id()) {
            return f(library);
        }
        let library = Library {
            cudnn: Cudnn::new(device.cuda_stream())?,
            plans: HashMap::new(),
            workspace: uninitialised(1, device)?,
        };
        f(libraries.entry(device.id()).or_insert(library))
    })
}

impl Geometry {
    /// Sizes from maps (B, H, W, ...) and weights (O, k, k, C).
    fn of(maps: &Shape, w: &Shape) -> Result<Geometry> {
        let (batch, height, width, _) = maps.dims4()?;
        let (outputs, kernel, other, inputs) = w.dims4()?;
        if kernel != other || kernel % 2 == 0 {
            bail!("conv2d: weights {w:?}");
        }
        Ok(Geometry { batch, inputs, outputs, height, width, kernel })
    }

    fn images(&self, channels: usize) -> Shape {
        (self.batch, self.height, self.width, channels).into()
    }
}

fn channels_last<T: Element>(w: Arg, scale: f32) -> Result<Tensor> {
    let ((outputs, inputs, height, width), n) = (w.layout.shape().dims4()?, w.len());
    let mut out = uninitialised::<T>(n, w.device())?;
    let (function, ws) = (kernel::<T>(w.device(), "channels_last")?, w.view::<f32>()?);
    let mut call = function.builder();
    call.arg(&ws).arg(&mut out);
    builder_arg!(call, count(n)?, inputs as u32, (height * width) as u32, scale);
    // SAFETY: the arguments match the kernel's parameters; the kernel checks the count.
    unsafe { call.launch(elements(n)) }.w()?;
    Ok(tensor(out, (outputs, height, width, inputs), w.device()))
}

fn forward<T: Element>(x: Arg, w: Arg) -> Result<Tensor> {
    let g = Geometry::of(x.layout.shape(), w.layout.shape())?;
    let (device, shape) = (x.device(), g.images(g.outputs));
    if x.layout.shape() != &g.images(g.inputs) {
        bail!("conv2d: {g:?} of {:?}", x.layout);
    }
    let (xs, ws) = (x.view::<T>()?, w.view::<T>()?);
    let mut y = uninitialised::<T>(shape.elem_count(), device)?;
    with_library(device, |library| {
        let plan = library.plan::<T>(g)?;
        let pass = ConvForward { conv: &plan.convolution, x: &plan.x, w: &plan.w, y: &plan.y };
        library.reserve(pass.get_workspace_size(FORWARD)?, device)?;
        let workspace = Some(&mut library.workspace);
        // SAFETY: the descriptors have the sizes and type of these slices.
        unsafe { pass.launch(FORWARD, workspace, (T::ONE, T::ZERO), &xs, &ws, &mut y)? };
        Ok(())
    })?;
    Ok(tensor(y, shape, device))
}

fn to_data<T: Element>(w: Arg, dy: Arg) -> Result<Tensor> {
    let g = Geometry::of(dy.layout.shape(), w.layout.shape())?;
    let (device, shape) = (w.device(), g.images(g.inputs));
    if dy.layout.shape() != &g.images(g.outputs) {
        bail!("conv2d: {g:?} and a gradient {:?}", dy.layout);
    }
    let (ws, dys) = (w.view::<T>()?, dy.view::<T>()?);
    let mut dx = uninitialised::<T>(shape.elem_count(), device)?;
    with_library(device, |library| {
        let plan = library.plan::<T>(g)?;
        let pass = ConvBackwardData { conv: &plan.convolution, dx: &plan.x, w: &plan.w, dy: &plan.y };
        library.reserve(pass.get_workspace_size(DATA)?, device)?;
        let workspace = Some(&mut library.workspace);
        // SAFETY: the descriptors have the sizes and type of these slices.
        unsafe { pass.launch(DATA, workspace, (T::ONE, T::ZERO), &mut dx, &ws, &dys)? };
        Ok(())
    })?;
    Ok(tensor(dx, shape, device))
}

fn to_filter<T: Element>(x: Arg, w: &Shape, dy: Arg, scale: f32) -> Result<Tensor> {
    let (outputs, inputs, kernel_height, kernel_width) = w.dims4()?;
    let g = Geometry::of(x.layout.shape(), &(outputs, kernel_height, kernel_width, inputs).into())?;
    if x.layout.shape() != &g.images(g.inputs) || dy.layout.shape() != &g.images(g.outputs) {
        bail!("conv2d: {g:?} of {:?} and a gradient {:?}", x.layout, dy.layout);
    }
    let (device, xs, dys, n) = (x.device(), x.view::<T>()?, dy.view::<T>()?, w.elem_count());
    let mut last = uninitialised::<T>(n, device)?;
    with_library(device, |library| {
        let plan = library.plan::<T>(g)?;
        let pass = ConvBackwardFilter { conv: &plan.convolution, x: &plan.x, dw: &plan.w, dy: &plan.y };
        library.reserve(pass.get_workspace_size(FILTER)?, device)?;
        let workspace = Some(&mut library.workspace);
        // SAFETY: the descriptors have the sizes and type of these slices.
        unsafe { pass.launch(FILTER, workspace, (T::ONE, T::ZERO), &xs, &mut last, &dys)? };
        Ok(())
    })?;
    let mut dw = uninitialised::<f32>(n, device)?;
    let function = kernel::<T>(device, "channels_first")?;
    let mut call = function.builder();
    call.arg(&last).arg(&mut dw);
    builder_arg!(call, count(n)?, inputs as u32, (kernel_height * kernel_width) as u32, scale);
    // SAFETY: the arguments match the kernel's parameters; the kernel checks the count.
    unsafe { call.launch(elements(n)) }.w()?;
    Ok(tensor(dw, w.clone(), device))
}
