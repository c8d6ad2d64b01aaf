//! Every kernel against the plain composition of candle operations, forward
//! and backward, and the same bits for one thread and two.

use candle_core::{Device, Result, Tensor, Var};
use proptest::prelude::*;
use replicate::kernels::{self, reference};
use replicate::rng::Stream;

fn random(name: &str, shape: &[usize]) -> Var {
    let n = shape.iter().product();
    let values = Stream::new("kernels", name).normals(0, n);
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// Output and gradients of sum(weights * f(inputs)) with fixed random weights.
fn evaluate(inputs: &[Var], f: &dyn Fn(&[Var]) -> Result<Tensor>) -> Vec<Vec<f32>> {
    let y = f(inputs).unwrap();
    let w = random("weights", y.dims());
    let grads = (&y * w.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut out = vec![flat(&y)];
    out.extend(inputs.iter().map(|v| flat(grads.get(v).expect("an input without a gradient"))));
    out
}

fn agree(
    name: &str,
    inputs: &[Var],
    ours: &dyn Fn(&[Var]) -> Result<Tensor>,
    plain: &dyn Fn(&[Var]) -> Result<Tensor>,
) {
    let (a, b) = (evaluate(inputs, ours), evaluate(inputs, plain));
    for (which, (a, b)) in a.iter().zip(&b).enumerate() {
        assert_eq!(a.len(), b.len());
        assert!(a.iter().chain(b).all(|v| v.is_finite()), "{name}, value {which} is not finite");
        let scale = (b.iter().map(|v| v * v).sum::<f32>() / b.len() as f32).sqrt().max(1e-3);
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= 2e-4 * scale, "{name}, value {which}: {worst} of {scale}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn conv2d(b in 1usize..6, c in 1usize..9, o in 1usize..10, h in 1usize..18, w in 1usize..18, k in 0usize..2, per_image: bool) {
        let k = 2 * k + 1;
        let bias: &[usize] = if per_image { &[b, o] } else { &[o] };
        let inputs = [random("x", &[b, c, h, w]), random("w", &[o, c, k, k]), random("b", bias)];
        agree("conv2d", &inputs, &|v| kernels::conv2d(&v[0], &v[1], &v[2]), &|v| reference::conv2d(&v[0], &v[1], &v[2]));
    }

    #[test]
    fn group_norm(b in 1usize..4, g in 1usize..5, per in 1usize..5, h in 2usize..9, w in 2usize..9, silu: bool) {
        let c = g * per;
        let inputs = [random("x", &[b, c, h, w]), random("g", &[c]), random("b", &[c])];
        agree("group_norm", &inputs,
            &|v| kernels::group_norm(&v[0], &v[1], &v[2], g, 1e-6, silu),
            &|v| reference::group_norm(&v[0], &v[1], &v[2], g, 1e-6, silu));
    }

    #[test]
    fn attention(b in 1usize..4, c in 1usize..9, t in 1usize..40) {
        let inputs = [random("qkv", &[b, 3 * c, t])];
        agree("attention", &inputs, &|v| kernels::attention(&v[0]), &|v| reference::attention(&v[0]));
    }

    #[test]
    fn linear(b in 1usize..70, i in 1usize..20, o in 1usize..20) {
        let inputs = [random("x", &[b, i]), random("w", &[o, i]), random("b", &[o])];
        agree("linear", &inputs,
            &|v| kernels::linear(&v[0], &v[1], Some(&v[2])), &|v| reference::linear(&v[0], &v[1], Some(&v[2])));
    }

    #[test]
    fn pointwise(b in 1usize..4, c in 1usize..4, h in 1usize..6, w in 1usize..6) {
        let x = [random("x", &[b, c, 2 * h, 2 * w])];
        let a: Vec<f32> = (0..b).map(|i| 0.5 + i as f32).collect();
        agree("silu", &x, &|v| kernels::silu(&v[0]), &|v| v[0].silu());
        agree("down2", &x, &|v| kernels::down2(&v[0]), &|v| reference::down2(&v[0]));
        agree("up2", &x, &|v| kernels::up2(&v[0]), &|v| reference::up2(&v[0]));
        agree("scale", &x, &|v| kernels::scale_images(&v[0], &a), &|v| reference::scale_images(&v[0], &a));
        let xy = [random("x", &[b, c, h, w]), random("y", &[b, c, h, w])];
        agree("mix", &xy, &|v| kernels::mix(&v[0], &a, &v[1], &[2.0]),
            &|v| reference::scale_images(&v[0], &a)? + (v[1].as_tensor() * 2.0)?);
    }
}

/// A tensor with a second user keeps both gradients (candle's own upsampling
/// loses one).
#[test]
fn upsampling_keeps_the_gradient_of_other_users() {
    let x = random("x", &[1, 1, 2, 2]);
    let y = (kernels::up2(&x).unwrap().sum_all().unwrap() + x.sum_all().unwrap()).unwrap();
    let g = y.backward().unwrap().get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(g, [5.0; 4]);
}

/// Softmax weights of large logits stay finite and sum to one.
#[test]
fn attention_survives_large_logits() {
    let qkv = (random("qkv", &[2, 12, 16]).as_tensor() * 100.0).unwrap();
    let a = kernels::attention(&qkv).unwrap();
    assert!(a.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|v| v.is_finite()));
    let ones = Tensor::ones((2, 12, 16), candle_core::DType::F32, &Device::Cpu).unwrap();
    let a = kernels::attention(&ones).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(a.iter().all(|v| (v - 1.0).abs() < 1e-6));
}

#[test]
fn one_thread_and_two_give_the_same_bits() {
    let inputs = [random("x", &[9, 7, 11, 11]), random("w", &[6, 7, 3, 3]), random("b", &[6])];
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            evaluate(&inputs, &|v| {
                let y = kernels::conv2d(&v[0], &v[1], &v[2])?;
                let y = kernels::group_norm(&y, &v[2], &v[2], 3, 1e-6, true)?;
                kernels::attention(&y.flatten_from(2)?)
            })
        })
    };
    let bits = |v: Vec<Vec<f32>>| v.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(on(1)), bits(on(2)));
}

/// An image gives the same bits alone and in a batch.
#[test]
fn a_batch_does_not_change_its_images() {
    let (x, w, b) = (random("x", &[9, 7, 11, 11]), random("w", &[6, 7, 3, 3]), random("b", &[6]));
    let all = kernels::conv2d(&x, &w, &b).unwrap();
    let one = kernels::conv2d(&x.narrow(0, 5, 1).unwrap(), &w, &b).unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(flat(&all.narrow(0, 5, 1).unwrap()), flat(&one));
    let (x, w) = (random("x", &[70, 9]), random("w", &[5, 9]));
    let all = kernels::linear(&x, &w, None).unwrap();
    let one = kernels::linear(&x.narrow(0, 69, 1).unwrap(), &w, None).unwrap();
    assert_eq!(flat(&all.narrow(0, 69, 1).unwrap()), flat(&one));
}
