//! Convolution, stride 1, same size, 1x1 or 3x3, with bias, through cuDNN.

use super::compile::kernel;
use super::{
    Arg, Element, THREADS, by_type, count, elements, rows, tensor, uninitialised, with_args, with_option,
};
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

/// What is done to the sums of a convolution in a pass behind it.
#[derive(Clone, Copy, Default)]
pub struct Ends<'a> {
    /// (O), or (B, O) for one bias an image; float32.
    pub bias: Option<&'a Tensor>,
    /// (B, H, W, O) that is added, and a factor of the whole.
    pub residual: Option<(&'a Tensor, f32)>,
}

/// Weights (O, C, k, k) in float32, k odd, as cuDNN takes them: (O, k, k, C), rounded to the
/// type of `like`.
pub fn filters(w: &Tensor, like: &Tensor) -> Result<Tensor> {
    with_args([w], |[w]| by_type!(like, channels_last(w)))
}

/// x * w: `x` (B, H, W, C), `w` from [`filters`]; gives (B, H, W, O). The products are
/// summed in float32.
pub fn conv2d(x: &Tensor, w: &Tensor, ends: Ends) -> Result<Tensor> {
    let (residual, scale) = ends.residual.unzip();
    with_args([x, w], |operands| {
        with_option(ends.bias, |bias| {
            with_option(residual, |residual| {
                by_type!(x, forward(operands, bias, residual, scale.unwrap_or(1.0)))
            })
        })
    })
}

/// The gradient of x from `dy` (B, H, W, O), of its type; `w` from [`filters`].
pub fn data_gradient(w: &Tensor, dy: &Tensor) -> Result<Tensor> {
    with_args([w, dy], |[w, dy]| by_type!(dy, to_data(w, dy)))
}

/// The gradient of weights of the shape `w`, (O, C, k, k), in float32, from a sum that cuDNN
/// rounds to the type of `x` and `dy`.
pub fn filter_gradient(x: &Tensor, w: &Shape, dy: &Tensor) -> Result<Tensor> {
    with_args([x, dy], |[x, dy]| by_type!(x, to_filter(x, w, dy)))
}

/// The sums of `dy` (B, H, W, O) over the pixels, (B, O), in float32.
pub fn pixel_sums(dy: &Tensor) -> Result<Tensor> {
    with_args([dy], |[dy]| by_type!(dy, over_pixels(dy)))
}

// Pinned: all three add in one order, and cuDNN's heuristics might choose others elsewhere.
const FORWARD: cudnnConvolutionFwdAlgo_t =
    cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
const DATA: cudnnConvolutionBwdDataAlgo_t = cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
const FILTER: cudnnConvolutionBwdFilterAlgo_t =
    cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;

/// `LANE` of the kernels.
const LANE: usize = 32;

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

/// What cuDNN has to know of a convolution, made once.
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

/// cuDNN of one device on one thread, which its handles must not leave.
struct Library {
    cudnn: Arc<Cudnn>,
    plans: HashMap<(Geometry, DType), Rc<dyn Any>>,
    /// As large as any pass has needed: all work of a device is on one stream, so the
    /// next one begins when this one has ended.
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
    /// Of maps (B, H, W, ...) and weights (O, k, k, C).
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

fn channels_last<T: Element>(w: Arg) -> Result<Tensor> {
    let ((outputs, inputs, height, width), n) = (w.layout.shape().dims4()?, w.len());
    let mut out = uninitialised::<T>(n, w.device())?;
    let (function, ws) = (kernel::<T>(w.device(), "channels_last")?, w.view::<f32>()?);
    let mut call = function.builder();
    call.arg(&ws).arg(&mut out);
    builder_arg!(call, count(n)?, inputs as u32, (height * width) as u32);
    // SAFETY: the kernel's parameters in their order; it checks the count.
    unsafe { call.launch(elements(n)) }.w()?;
    Ok(tensor(out, (outputs, height, width, inputs), w.device()))
}

fn forward<T: Element>(
    [x, w]: [Arg; 2],
    bias: Option<Arg>,
    residual: Option<Arg>,
    scale: f32,
) -> Result<Tensor> {
    let g = Geometry::of(x.layout.shape(), w.layout.shape())?;
    let (device, shape, pixels) = (x.device(), g.images(g.outputs), g.height * g.width);
    let per_image = bias.is_some_and(|bias| bias.layout.dims() == [g.batch, g.outputs]);
    if x.layout.shape() != &g.images(g.inputs)
        || bias.is_some_and(|bias| !per_image && bias.layout.dims() != [g.outputs])
        || residual.is_some_and(|residual| residual.layout.shape() != &shape)
    {
        bail!(
            "conv2d: {g:?} of {:?}, {:?}, {:?}",
            x.layout,
            bias.map(|b| b.layout),
            residual.map(|r| r.layout)
        );
    }
    let (xs, ws) = (x.view::<T>()?, w.view::<T>()?);
    let mut y = uninitialised::<T>(shape.elem_count(), device)?;
    with_library(device, |library| {
        let plan = library.plan::<T>(g)?;
        let pass = ConvForward { conv: &plan.convolution, x: &plan.x, w: &plan.w, y: &plan.y };
        library.reserve(pass.get_workspace_size(FORWARD)?, device)?;
        let workspace = Some(&mut library.workspace);
        // SAFETY: the descriptors are of these slices' sizes and type.
        unsafe { pass.launch(FORWARD, workspace, (T::ONE, T::ZERO), &xs, &ws, &mut y)? };
        Ok(())
    })?;
    if bias.is_none() && residual.is_none() {
        return Ok(tensor(y, shape, device));
    }
    let function = kernel::<T>(device, "finish")?;
    let bias = bias.map(|bias| bias.view::<f32>()).transpose()?;
    let residual = residual.map(|residual| residual.view::<T>()).transpose()?;
    let null = 0u64;
    let mut call = function.builder();
    call.arg(&mut y);
    match &bias {
        Some(bias) => call.arg(bias),
        None => call.arg(&null),
    };
    match &residual {
        Some(residual) => call.arg(residual),
        None => call.arg(&null),
    };
    builder_arg!(
        call,
        count(g.batch * pixels)?,
        g.outputs as u32,
        pixels as u32,
        u32::from(per_image),
        scale
    );
    // SAFETY: the kernel's parameters in their order; it checks rows and channels.
    unsafe { call.launch(rows((g.batch * pixels).div_ceil(4), g.outputs)) }.w()?;
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
        // SAFETY: the descriptors are of these slices' sizes and type.
        unsafe { pass.launch(DATA, workspace, (T::ONE, T::ZERO), &mut dx, &ws, &dys)? };
        Ok(())
    })?;
    Ok(tensor(dx, shape, device))
}

fn to_filter<T: Element>(x: Arg, w: &Shape, dy: Arg) -> Result<Tensor> {
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
        // SAFETY: the descriptors are of these slices' sizes and type.
        unsafe { pass.launch(FILTER, workspace, (T::ONE, T::ZERO), &xs, &mut last, &dys)? };
        Ok(())
    })?;
    let mut dw = uninitialised::<f32>(n, device)?;
    let function = kernel::<T>(device, "channels_first")?;
    let mut call = function.builder();
    call.arg(&last).arg(&mut dw);
    builder_arg!(call, count(n)?, inputs as u32, (kernel_height * kernel_width) as u32);
    // SAFETY: the kernel's parameters in their order; it checks the count.
    unsafe { call.launch(elements(n)) }.w()?;
    Ok(tensor(dw, w.clone(), device))
}

fn over_pixels<T: Element>(dy: Arg) -> Result<Tensor> {
    let (batch, height, width, channels) = dy.layout.shape().dims4()?;
    let (device, dys) = (dy.device(), dy.view::<T>()?);
    let mut sums = uninitialised::<f32>(batch * channels, device)?;
    let function = kernel::<T>(device, "pixel_sums")?;
    let mut call = function.builder();
    call.arg(&dys).arg(&mut sums);
    builder_arg!(call, channels as u32, (height * width) as u32);
    // SAFETY: the kernel's parameters in their order; blocks for the channels of each image.
    unsafe { call.launch(rows(batch * channels.div_ceil(LANE), THREADS as usize)) }.w()?;
    Ok(tensor(sums, (batch, channels), device))
}
