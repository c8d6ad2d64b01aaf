use candle_core::{Device, Tensor, Var};
use replicate::kernels::*;
use std::time::Instant;
fn r(s: &[usize]) -> Var {
    let n: usize = s.iter().product();
    Var::from_tensor(
        &Tensor::from_vec(replicate::rng::Stream::new("b", "x").normals(0, n), s, &Device::Cpu).unwrap(),
    )
    .unwrap()
}
fn time(name: &str, gf: f64, mut f: impl FnMut()) {
    f();
    f();
    let mut best = f64::MAX;
    let mut tot = 0.0;
    for _ in 0..10 {
        let t = Instant::now();
        f();
        let s = t.elapsed().as_secs_f64();
        best = best.min(s);
        tot += s;
    }
    println!("{name:40} best {:.2} ms mean {:.2} ms  {:.1} GF/s", best * 1e3, tot * 100.0, gf / best);
}
fn main() {
    for (b, c, o, s) in
        [(64, 16, 16, 16), (64, 32, 32, 8), (64, 48, 16, 16), (64, 32, 32, 16), (16, 128, 128, 32)]
    {
        let (x, w, bi) = (r(&[b, c, s, s]), r(&[o, c, 3, 3]), r(&[o]));
        let gf = (b * c * o * 9 * s * s * 2) as f64 / 1e9;
        let xd = x.as_detached_tensor();
        let wd = w.as_detached_tensor();
        let bd = bi.as_detached_tensor();
        time(&format!("conv fwd {b} {c}->{o} {s}"), gf, || {
            conv2d(&xd, &wd, &bd).unwrap();
        });
        time(&format!("conv fwd+bwd {b} {c}->{o} {s}"), 3.0 * gf, || {
            conv2d(&x, &w, &bi).unwrap().sum_all().unwrap().backward().unwrap();
        });
    }
    let (x, g, bi) = (r(&[64, 16, 16, 16]), r(&[16]), r(&[16]));
    time("gn silu fwd", 0.0, || {
        group_norm(&x.as_detached_tensor(), &g, &bi, 4, 1e-6, true).unwrap();
    });
    time("gn silu fwd+bwd", 0.0, || {
        group_norm(&x, &g, &bi, 4, 1e-6, true).unwrap().sum_all().unwrap().backward().unwrap();
    });
    let y = r(&[64, 16, 16, 16]);
    time("mix fwd", 0.0, || {
        mix(&x.as_detached_tensor(), &[0.7], &y, &[0.7]).unwrap();
    });
    time("mix fwd+bwd", 0.0, || {
        mix(&x, &[0.7], &y, &[0.7]).unwrap().sum_all().unwrap().backward().unwrap();
    });
    time("candle add", 0.0, || {
        (x.as_tensor() + y.as_tensor()).unwrap();
    });
    time("zeros_like", 0.0, || {
        x.zeros_like().unwrap();
    });
    let q = r(&[64, 96, 64]);
    time("attention fwd+bwd", 0.0, || {
        attention(&q).unwrap().sum_all().unwrap().backward().unwrap();
    });
    time("cat", 0.0, || {
        Tensor::cat(&[x.as_tensor(), y.as_tensor()], 1).unwrap();
    });
    time("normals", 0.0, || {
        replicate::rng::Stream::new("b", "x").normals(0, 64 * 768);
    });
}
