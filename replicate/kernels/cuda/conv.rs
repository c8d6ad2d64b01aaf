//! Convolution, stride 1, same size, 1x1 or 3x3, with bias, through cuDNN.

use super::compile::{kernel, plain};
use super::{
    Arg, Element, THREADS, by_type, count, elements, no_cpu, rows, storage, tensor, uninitialised, with_args,
};
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnConvolutionBwdDataAlgo_t, cudnnConvolutionBwdFilterAlgo_t, cudnnConvolutionFwdAlgo_t,
    cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t,
};
use candle_core::cuda_backend::cudarc::cudnn::{
    ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, Cudnn, FilterDescriptor,
    TensorDescriptor,
};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};
use candle_core::cuda_backend::{CudaDevice, DeviceId, WrapErr};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail, builder_arg,
};
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// x * w + bias: `x` (B, H, W, C), `w` (O, C, k, k) with odd k, `bias` (O), or (B, O) for
/// one bias an image; gives (B, H, W, O). `w` and `bias` are float32; `w` is rounded to
/// the type of `x`, and the products are summed in float32.
pub fn conv2d(x: &Tensor, w: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&w.contiguous()?, &bias.contiguous()?, Conv2d)
}

struct Conv2d;

// Pinned: cuDNN has the first for every type and size here, all three add in one order,
// and its heuristics might choose others elsewhere.
const FORWARD: cudnnConvolutionFwdAlgo_t =
    cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
const DATA: cudnnConvolutionBwdDataAlgo_t = cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
const FILTER: cudnnConvolutionBwdFilterAlgo_t =
    cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;

/// `LANE` of the kernels.
const LANE: usize = 32;

/// Sizes of one convolution.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
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
    /// Bytes that each of the three passes needs.
    forward_workspace: usize,
    data_workspace: usize,
    filter_workspace: usize,
}

impl<T: Element> Plan<T> {
    fn new(g: Geometry, cudnn: &Arc<Cudnn>) -> Result<Plan<T>> {
        let pad = (g.kernel / 2) as i32;
        let mode = cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let mut convolution = cudnn.create_conv2d::<f32>([pad, pad], [1, 1], [1, 1], mode)?;
        // The default would round float32 operands to TF32.
        convolution.set_math_type(match T::DTYPE {
            DType::F32 => cudnnMathType_t::CUDNN_FMA_MATH,
            _ => cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        })?;
        let order = cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let sides = |channels: usize| [g.batch, channels, g.height, g.width].map(|side| side as i32);
        let x = cudnn.create_4d_tensor::<T>(order, sides(g.inputs))?;
        let y = cudnn.create_4d_tensor::<T>(order, sides(g.outputs))?;
        let w = cudnn.create_4d_filter::<T>(
            order,
            [g.outputs, g.inputs, g.kernel, g.kernel].map(|side| side as i32),
        )?;
        let forward = ConvForward { conv: &convolution, x: &x, w: &w, y: &y };
        let forward_workspace = forward.get_workspace_size(FORWARD)?;
        let data = ConvBackwardData { conv: &convolution, dx: &x, w: &w, dy: &y };
        let data_workspace = data.get_workspace_size(DATA)?;
        let filter = ConvBackwardFilter { conv: &convolution, x: &x, dw: &w, dy: &y };
        let filter_workspace = filter.get_workspace_size(FILTER)?;
        Ok(Plan { convolution, x, w, y, forward_workspace, data_workspace, filter_workspace })
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

fn geometry(x: &Shape, w: &Shape, bias: &Shape) -> Result<Geometry> {
    let (batch, height, width, inputs) = x.dims4()?;
    let (outputs, per_output, kernel, other) = w.dims4()?;
    let per_image = bias.dims() == [batch, outputs];
    if per_output != inputs || kernel != other || kernel % 2 == 0 || !(per_image || bias.dims() == [outputs])
    {
        bail!("conv2d: input {x:?}, weight {w:?}, bias {bias:?}");
    }
    Ok(Geometry { batch, inputs, outputs, height, width, kernel })
}

impl Geometry {
    fn images(&self, channels: usize) -> Shape {
        (self.batch, self.height, self.width, channels).into()
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    fn weights(&self) -> usize {
        self.outputs * self.inputs * self.taps()
    }
}

/// `w` in the type of the activations and in cuDNN's order, (O, k, k, C).
fn filters<T: Element>(g: Geometry, w: Arg) -> Result<CudaSlice<T>> {
    let mut out = uninitialised::<T>(g.weights(), w.device())?;
    let (function, ws) = (kernel::<T>(w.device(), "channels_last")?, w.view::<f32>()?);
    let mut call = function.builder();
    call.arg(&ws).arg(&mut out);
    builder_arg!(call, count(g.weights())?, g.inputs as u32, g.taps() as u32);
    // SAFETY: the kernel's parameters in their order; it checks the count.
    unsafe { call.launch(elements(g.weights())) }.w()?;
    Ok(out)
}

fn forward<T: Element>([x, w, bias]: [Arg; 3]) -> Result<(CudaStorage, Shape)> {
    let g = geometry(x.layout.shape(), w.layout.shape(), bias.layout.shape())?;
    let (device, shape) = (x.device(), g.images(g.outputs));
    let (xs, ws) = (x.view::<T>()?, filters::<T>(g, w)?);
    let mut y = uninitialised::<T>(shape.elem_count(), device)?;
    with_library(device, |library| {
        let plan = library.plan::<T>(g)?;
        library.reserve(plan.forward_workspace, device)?;
        let pass = ConvForward { conv: &plan.convolution, x: &plan.x, w: &plan.w, y: &plan.y };
        let workspace = Some(&mut library.workspace);
        // SAFETY: the descriptors are of these slices' sizes and type.
        unsafe { pass.launch(FORWARD, workspace, (T::ONE, T::ZERO), &xs, &ws, &mut y)? };
        Ok(())
    })?;
    let (function, biases) = (kernel::<T>(device, "add_bias")?, bias.view::<f32>()?);
    let pixels = g.height * g.width;
    let mut call = function.builder();
    call.arg(&mut y).arg(&biases);
    let per_image = bias.layout.dims().len() == 2;
    builder_arg!(call, count(g.batch * pixels)?, g.outputs as u32, pixels as u32, u32::from(per_image));
    // SAFETY: the kernel's parameters in their order; it checks rows and channels.
    unsafe { call.launch(rows((g.batch * pixels).div_ceil(4), g.outputs)) }.w()?;
    Ok((storage(y, device), shape))
}

fn data_gradient<T: Element>(g: Geometry, w: Arg, dy: &CudaView<T>) -> Result<Tensor> {
    let (device, shape) = (w.device(), g.images(g.inputs));
    let ws = filters::<T>(g, w)?;
    let mut dx = uninitialised::<T>(shape.elem_count(), device)?;
    with_library(device, |library| {
        let plan = library.plan::<T>(g)?;
        library.reserve(plan.data_workspace, device)?;
        let pass = ConvBackwardData { conv: &plan.convolution, dx: &plan.x, w: &plan.w, dy: &plan.y };
        let workspace = Some(&mut library.workspace);
        // SAFETY: the descriptors are of these slices' sizes and type.
        unsafe { pass.launch(DATA, workspace, (T::ONE, T::ZERO), &mut dx, &ws, dy)? };
        Ok(())
    })?;
    Ok(tensor(dx, shape, device))
}

/// Float32, from a sum that cuDNN rounds to the type of the activations.
fn filter_gradient<T: Element>(g: Geometry, x: Arg, dy: &CudaView<T>) -> Result<Tensor> {
    let (device, xs) = (x.device(), x.view::<T>()?);
    let mut last = uninitialised::<T>(g.weights(), device)?;
    with_library(device, |library| {
        let plan = library.plan::<T>(g)?;
        library.reserve(plan.filter_workspace, device)?;
        let pass = ConvBackwardFilter { conv: &plan.convolution, x: &plan.x, dw: &plan.w, dy: &plan.y };
        let workspace = Some(&mut library.workspace);
        // SAFETY: the descriptors are of these slices' sizes and type.
        unsafe { pass.launch(FILTER, workspace, (T::ONE, T::ZERO), &xs, &mut last, dy)? };
        Ok(())
    })?;
    let mut dw = uninitialised::<f32>(g.weights(), device)?;
    let function = kernel::<T>(device, "channels_first")?;
    let mut call = function.builder();
    call.arg(&last).arg(&mut dw);
    builder_arg!(call, count(g.weights())?, g.inputs as u32, g.taps() as u32);
    // SAFETY: the kernel's parameters in their order; it checks the count.
    unsafe { call.launch(elements(g.weights())) }.w()?;
    Ok(tensor(dw, (g.outputs, g.inputs, g.kernel, g.kernel), device))
}

/// (outputs), or (batch, outputs) for one bias an image.
fn bias_gradient<T: Element>(
    g: Geometry,
    device: &CudaDevice,
    dy: &CudaView<T>,
    per_image: bool,
) -> Result<Tensor> {
    let mut sums = uninitialised::<f32>(g.batch * g.outputs, device)?;
    let function = kernel::<T>(device, "pixel_sums")?;
    let mut call = function.builder();
    call.arg(dy).arg(&mut sums);
    builder_arg!(call, g.outputs as u32, (g.height * g.width) as u32);
    // SAFETY: the kernel's parameters in their order; blocks for the channels of each image.
    unsafe { call.launch(rows(g.batch * g.outputs.div_ceil(LANE), THREADS as usize)) }.w()?;
    if per_image {
        return Ok(tensor(sums, (g.batch, g.outputs), device));
    }
    let mut total = uninitialised::<f32>(g.outputs, device)?;
    let function = plain(device, "column_sums")?;
    let mut call = function.builder();
    call.arg(&sums).arg(&mut total);
    builder_arg!(call, g.batch as u32, g.outputs as u32);
    // SAFETY: the kernel's parameters in their order; `batch` rows of `outputs` sums.
    unsafe { call.launch(elements(g.outputs)) }.w()?;
    Ok(tensor(total, g.outputs, device))
}

type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// The gradients of x, w and bias, where they are `wanted`.
fn backward<T: Element>([x, w, bias, dy]: [Arg; 4], wanted: [bool; 3]) -> Result<Gradients> {
    let g = geometry(x.layout.shape(), w.layout.shape(), bias.layout.shape())?;
    let dys = dy.view::<T>()?;
    let dx = wanted[0].then(|| data_gradient::<T>(g, w, &dys)).transpose()?;
    let dw = wanted[1].then(|| filter_gradient::<T>(g, x, &dys)).transpose()?;
    let per_image = bias.layout.dims().len() == 2;
    let db = wanted[2].then(|| bias_gradient::<T>(g, x.device(), &dys, per_image)).transpose()?;
    Ok((dx, dw, db))
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        no_cpu(self.name())
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
        bias: &CudaStorage,
        lb: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let args = [(x, lx), (w, lw), (bias, lb)].map(|(storage, layout)| Arg { storage, layout });
        by_type!(args[0], forward(args))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, bias: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Gradients> {
        let wanted = [x, w, bias].map(Tensor::track_op);
        with_args([x, w, bias, dy], |args| by_type!(x, backward(args, wanted)))
    }
}
