//! Sixteen float32 lanes with the same semantics on every CPU: same operations, same order,
//! multiply-add always fused. A kernel gives the same bits with AVX-512, with AVX2 and without
//! either. The instruction set is chosen at run time, so the binary is portable.

/// Values in a vector.
pub const LANES: usize = 16;

/// Magic constant of [`Lanes::guess_reciprocal`]: 254 in the exponent, and a fraction that centres
/// the error.
const RECIPROCAL: u32 = 0x7EF3_11C7;

/// Sixteen float32 lanes. `fma` rounds once.
///
/// # Safety
/// The methods of `Avx512` and `Avx2` may only be called on CPUs with these features, which [`run`]
/// ensures. Pointers must be valid for sixteen values, or for `n` values in the `_part` methods.
pub trait Lanes: Copy {
    /// True if there are 32 registers of sixteen lanes, false if there are 16 registers of eight.
    const WIDE: bool;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// Loads the first `n` < 16 lanes; the others are 0.
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self {
        let mut all = [0f32; LANES];
        unsafe {
            std::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), n);
            Self::load(all.as_ptr())
        }
    }
    /// Stores the first `n` < 16 lanes and nothing else.
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        let mut all = [0f32; LANES];
        unsafe {
            self.store(all.as_mut_ptr());
            std::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
        }
    }
    /// Loads sixteen lanes, or `n` if fewer are left.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        unsafe { if n >= LANES { Self::load(p) } else { Self::load_part(p, n) } }
    }
    /// Stores sixteen lanes, or `n` if there is room for fewer.
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        unsafe { if n >= LANES { self.store(p) } else { self.store_part(p, n) } }
    }
    /// Computes self + a * b.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    /// Returns the second operand if either is NaN.
    unsafe fn max(self, o: Self) -> Self;
    /// Returns the second operand if either is NaN.
    unsafe fn min(self, o: Self) -> Self;
    /// Computes 2^n for integral n in -126..=127.
    unsafe fn exp2i(self) -> Self;
    /// Approximates 1 / x within 13 % for x from 1 to 2^126, by subtracting the bits of x from a
    /// constant.
    unsafe fn guess_reciprocal(self) -> Self;

    /// Sums the lanes in a fixed binary tree.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut l = [0f32; LANES];
        unsafe { self.store(l.as_mut_ptr()) };
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                l[i] += l[i + half];
            }
        }
        l[0]
    }

    /// Computes e^x with a relative error below 2e-7 in [-87, 88]; clamped outside. NaN stays NaN.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        unsafe {
            let x = Self::splat(-87.0).max(Self::splat(88.0).min(self));
            // Adding 1.5 * 2^23 rounds to the nearest integer.
            let magic = Self::splat(12_582_912.0);
            let n = magic.fma(x, Self::splat(std::f32::consts::LOG2_E)).sub(magic);
            let r = x.fma(n, Self::splat(-0.693_359_4)).fma(n, Self::splat(2.121_944_4e-4));
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = Self::splat(c).fma(p, r);
            }
            let e = r.fma(p, r.mul(r)).add(Self::splat(1.0));
            e.mul(n.exp2i())
        }
    }

    /// Computes 1 / (1 + e^-x) with an error below 2e-7. Uses Newton's method, which is several
    /// times faster than a division.
    #[inline(always)]
    unsafe fn sigmoid(self) -> Self {
        unsafe {
            let one = Self::splat(1.0);
            // Beyond e^87 the first guess would leave the range of float32.
            let e = Self::splat(87.0).min(Self::splat(0.0).sub(self)).exp();
            let minus = Self::splat(0.0).sub(one.add(e));
            let mut r = Self::splat(0.0).sub(minus).guess_reciprocal();
            for _ in 0..3 {
                r = r.fma(r, one.fma(minus, r));
            }
            r
        }
    }
}

/// A kernel body, written once for all instruction sets.
pub trait Kernel {
    type Out;
    fn run<L: Lanes>(self) -> Self::Out;
}

/// Runs `kernel` with the fastest instruction set of this CPU.
pub fn run<K: Kernel>(kernel: K) -> K::Out {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was just detected.
            return unsafe { run_avx512(kernel) };
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: both features were just detected.
            return unsafe { run_avx2(kernel) };
        }
    }
    kernel.run::<Portable>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<avx512::Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<avx2::Avx2>()
}

/// Runs a kernel with every instruction set of this CPU, plain Rust first.
#[cfg(test)]
pub fn run_each<K: Kernel>(kernel: impl Fn() -> K) -> Vec<(&'static str, K::Out)> {
    let mut all = vec![("portable", kernel().run::<Portable>())];
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: both features were just detected.
            all.push(("avx2", unsafe { run_avx2(kernel()) }));
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was just detected.
            all.push(("avx512", unsafe { run_avx512(kernel()) }));
        }
    }
    all
}

/// Plain Rust: the reference for the others, and the fallback on other architectures.
#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], o.0[i])))
    }
}

// The methods are safe in themselves except for the pointers.
#[allow(clippy::missing_safety_doc)]
impl Lanes for Portable {
    const WIDE: bool = false;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's contract; the array has the alignment of f32.
        Portable(unsafe { *p.cast::<[f32; LANES]>() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as in `load`.
        unsafe { *p.cast::<[f32; LANES]>() = self.0 };
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Portable(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        self.zip(o, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        self.zip(o, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        self.zip(o, |a, b| a * b)
    }
    // Like the x86 instructions, returns the second operand if either is NaN.
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        self.zip(o, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        self.zip(o, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn exp2i(self) -> Self {
        Portable(self.0.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23)))
    }
    #[inline(always)]
    unsafe fn guess_reciprocal(self) -> Self {
        Portable(self.0.map(|x| f32::from_bits(RECIPROCAL.wrapping_sub(x.to_bits()))))
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    /// Lanes 0 to 7, and 8 to 15.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    // SAFETY of every block: run_avx2 is the only caller and is reached only if the features were
    // detected; pointers are valid by the trait's contract.
    impl super::Lanes for Avx2 {
        const WIDE: bool = false;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            let v = unsafe { _mm256_set1_ps(x) };
            Avx2(v, v)
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe {
                _mm256_storeu_ps(p, self.0);
                _mm256_storeu_ps(p.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            unsafe { Avx2(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            unsafe { Avx2(_mm256_add_ps(self.0, o.0), _mm256_add_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn sub(self, o: Self) -> Self {
            unsafe { Avx2(_mm256_sub_ps(self.0, o.0), _mm256_sub_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn mul(self, o: Self) -> Self {
            unsafe { Avx2(_mm256_mul_ps(self.0, o.0), _mm256_mul_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn max(self, o: Self) -> Self {
            unsafe { Avx2(_mm256_max_ps(self.0, o.0), _mm256_max_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn min(self, o: Self) -> Self {
            unsafe { Avx2(_mm256_min_ps(self.0, o.0), _mm256_min_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn exp2i(self) -> Self {
            unsafe {
                let bias = _mm256_set1_epi32(127);
                let low = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias);
                let high = _mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias);
                Avx2(
                    _mm256_castsi256_ps(_mm256_slli_epi32(low, 23)),
                    _mm256_castsi256_ps(_mm256_slli_epi32(high, 23)),
                )
            }
        }
        #[inline(always)]
        unsafe fn guess_reciprocal(self) -> Self {
            unsafe {
                let from = _mm256_set1_epi32(super::RECIPROCAL as i32);
                let low = _mm256_sub_epi32(from, _mm256_castps_si256(self.0));
                let high = _mm256_sub_epi32(from, _mm256_castps_si256(self.1));
                Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    // SAFETY of every block: run_avx512 is the only caller and is reached only if the feature was
    // detected; pointers are valid by the trait's contract.
    impl super::Lanes for Avx512 {
        const WIDE: bool = true;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            Avx512(unsafe { _mm512_set1_ps(x) })
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            Avx512(unsafe { _mm512_loadu_ps(p) })
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> Self {
            Avx512(unsafe { _mm512_maskz_loadu_ps((1u16 << n) - 1, p) })
        }
        #[inline(always)]
        unsafe fn store_part(self, p: *mut f32, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, (1u16 << n) - 1, self.0) }
        }
        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            Avx512(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            Avx512(unsafe { _mm512_add_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn sub(self, o: Self) -> Self {
            Avx512(unsafe { _mm512_sub_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn mul(self, o: Self) -> Self {
            Avx512(unsafe { _mm512_mul_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn max(self, o: Self) -> Self {
            Avx512(unsafe { _mm512_max_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn min(self, o: Self) -> Self {
            Avx512(unsafe { _mm512_min_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn exp2i(self) -> Self {
            unsafe {
                let n = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
                Avx512(_mm512_castsi512_ps(_mm512_slli_epi32(n, 23)))
            }
        }
        #[inline(always)]
        unsafe fn guess_reciprocal(self) -> Self {
            unsafe {
                let from = _mm512_set1_epi32(super::RECIPROCAL as i32);
                Avx512(_mm512_castsi512_ps(_mm512_sub_epi32(from, _mm512_castps_si512(self.0))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Each<'a>(&'a [f32], bool);

    impl Kernel for Each<'_> {
        type Out = Vec<f32>;

        #[inline(always)]
        fn run<L: Lanes>(self) -> Vec<f32> {
            let mut out = vec![0f32; self.0.len()];
            for (x, y) in self.0.chunks_exact(LANES).zip(out.chunks_exact_mut(LANES)) {
                // SAFETY: exactly sixteen values on either side.
                unsafe {
                    let v = L::load(x.as_ptr());
                    if self.1 { v.sigmoid() } else { v.exp() }.store(y.as_mut_ptr());
                }
            }
            out
        }
    }

    fn inputs() -> Vec<f32> {
        let mut x: Vec<f32> = (0..40_000).map(|i| (i as f32 - 20_000.0) * 0.005).collect();
        x.extend([0.0, -0.0, f32::MIN_POSITIVE, 1e-30, -1e-30, 1e30, -1e30, 88.5]);
        x.resize(x.len().next_multiple_of(LANES), 1.0);
        x
    }

    /// The instruction set does not change the bits.
    #[test]
    fn all_lanes_give_the_same_bits() {
        let x = inputs();
        for sigmoid in [false, true] {
            let all = run_each(|| Each(&x, sigmoid));
            for (lanes, values) in &all {
                for ((x, a), b) in x.iter().zip(values).zip(&all[0].1) {
                    assert_eq!(a.to_bits(), b.to_bits(), "{lanes} at {x}: {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn nan_stays() {
        let x = [f32::NAN; LANES];
        for sigmoid in [false, true] {
            for (lanes, y) in run_each(|| Each(&x, sigmoid)) {
                assert!(y.iter().all(|v| v.is_nan()), "{lanes}");
            }
        }
    }

    #[test]
    fn sigmoid_is_accurate() {
        let x = inputs();
        for (x, y) in x.iter().zip(run(Each(&x, true))) {
            let expected = 1.0 / (1.0 + (-*x as f64).exp());
            assert!((y as f64 - expected).abs() <= 2e-7, "sigmoid({x}) = {y}, not {expected}");
        }
    }

    #[test]
    fn exp_is_accurate() {
        let x: Vec<f32> = inputs().into_iter().filter(|x| x.abs() <= 87.0).collect();
        let x = &x[..x.len() / LANES * LANES];
        let y = run(Each(x, false));
        for (x, y) in x.iter().zip(&y) {
            let expected = (*x as f64).exp();
            assert!((*y as f64 - expected).abs() <= 2e-7 * expected, "e^{x} = {y}, not {expected}");
        }
    }
}
