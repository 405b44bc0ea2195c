//! Elementary functions on f32, written so that the compiler vectorizes loops over them.
//!
//! `FUSED` says whether multiply-add is one instruction (see [`super::isa`]). Errors are measured against
//! f64 in the tests.

// Coefficients are written as their sources print them.
#![allow(clippy::excessive_precision)]

use common::model::spec::Activation;

use super::isa::for_each_isa;

/// `a * b + c`.
#[inline(always)]
pub(super) fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x`; 0 below -87.3 and at most `e^88`.
#[inline(always)]
pub(super) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2: Cody and Waite's reduction, then Cephes' polynomial for e^r.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    const LEAST: f32 = -87.3;
    let kept = x >= LEAST;
    let x = x.clamp(LEAST, 88.0);
    let n = fma::<FUSED>(x, std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = fma::<FUSED>(n, -0.693_359_4, x);
    let r = fma::<FUSED>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = fma::<FUSED>(p, r, 1.398_199_9e-3);
    p = fma::<FUSED>(p, r, 8.333_452e-3);
    p = fma::<FUSED>(p, r, 4.166_579_6e-2);
    p = fma::<FUSED>(p, r, 1.666_666_5e-1);
    p = fma::<FUSED>(p, r, 0.5);
    let e = fma::<FUSED>(p * r, r, r) + 1.0;
    // `to_int_unchecked` without the unsafe: the sum's low bits are the integer.
    let power = (n + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if kept { e * f32::from_bits(power) } else { 0.0 }
}

/// `tanh x`, with a small relative error near 0, too: a rational approximation (as in Eigen).
#[inline(always)]
pub(super) fn tanh<const FUSED: bool>(x: f32) -> f32 {
    const NUMERATOR: [f32; 7] = [
        -2.760_768_5e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297e-8,
        1.485_722_4e-5,
        6.372_619e-4,
        4.893_524_6e-3,
    ];
    const DENOMINATOR: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    // tanh is 1 in f32 from here on.
    let x = x.clamp(-9.0, 9.0);
    let held = x.clamp(-7.905_311, 7.905_311);
    let square = held * held;
    let p = polynomial::<FUSED, 7>(square, NUMERATOR) * held;
    let rational = p / polynomial::<FUSED, 4>(square, DENOMINATOR);
    if x.abs() < 4e-4 { x } else { rational }
}

/// The error function: a rational approximation (as in Eigen).
#[inline(always)]
pub(super) fn erf<const FUSED: bool>(x: f32) -> f32 {
    const NUMERATOR: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_5e-5,
        -7.349_906e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const DENOMINATOR: [f32; 5] =
        [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_474e-2];
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    x * polynomial::<FUSED, 7>(square, NUMERATOR) / polynomial::<FUSED, 5>(square, DENOMINATOR)
}

/// Horner's rule, highest power first.
#[inline(always)]
fn polynomial<const FUSED: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for coefficient in &coefficients[1..] {
        sum = fma::<FUSED>(sum, x, *coefficient);
    }
    sum
}

/// `x * sigmoid(x)`.
#[inline(always)]
fn silu<const FUSED: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FUSED>(-x))
}

/// `0.5 x (1 + tanh(u))` with `u = sqrt(2/pi) (x + 0.044715 x^3)`, which is `x * sigmoid(2 u)`.
#[inline(always)]
fn gelu_tanh<const FUSED: bool>(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let u = TWICE_SQRT_2_OVER_PI * x * fma::<FUSED>(0.044_715 * x, x, 1.0);
    x / (1.0 + exp::<FUSED>(-u))
}

/// `0.5 x (1 + erf(x / sqrt 2))`.
#[inline(always)]
fn gelu_erf<const FUSED: bool>(x: f32) -> f32 {
    0.5 * x * (1.0 + erf::<FUSED>(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// An MLP's nonlinearity on a slice, in place.
#[inline(always)]
pub(super) fn activate<const FUSED: bool>(values: &mut [f32], activation: Activation) {
    match activation {
        Activation::GeluErf => values.iter_mut().for_each(|x| *x = gelu_erf::<FUSED>(*x)),
        Activation::GeluTanh => values.iter_mut().for_each(|x| *x = gelu_tanh::<FUSED>(*x)),
        Activation::Relu => values.iter_mut().for_each(|x| *x = x.max(0.0)),
        Activation::Silu => values.iter_mut().for_each(|x| *x = silu::<FUSED>(*x)),
    }
}

for_each_isa! {
    /// `act(gate) * up`, one row: `out` from the two halves of `both`.
    fn gate_row(both: &[f32], out: &mut [f32], activation: Activation) => gate
}

#[inline(always)]
fn gate<const FUSED: bool>(both: &[f32], out: &mut [f32], activation: Activation) {
    let (gate, up) = both.split_at(out.len());
    out.copy_from_slice(gate);
    activate::<FUSED>(out, activation);
    out.iter_mut().zip(up).for_each(|(out, up)| *out *= up);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest difference of `ours` from `exact`, each divided by what `unit` says of x.
    fn worst(
        range: std::ops::RangeInclusive<f64>,
        ours: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
        unit: impl Fn(f64, f64) -> f64,
    ) -> f64 {
        const STEPS: usize = 200_000;
        let width = range.end() - range.start();
        let errors = (0..=STEPS).map(|step| {
            let x = (range.start() + width * step as f64 / STEPS as f64) as f32;
            let expected = exact(f64::from(x));
            (f64::from(ours(x)) - expected).abs() / unit(f64::from(x), expected)
        });
        errors.fold(0.0, f64::max)
    }

    /// The error function by its series and, further out, its continued fraction.
    fn erf64(x: f64) -> f64 {
        if x.abs() > 3.0 {
            let mut fraction = 0.0;
            for k in (1..=60).rev() {
                fraction = k as f64 / 2.0 / (x.abs() + fraction);
            }
            let tail = (-x * x).exp() / std::f64::consts::PI.sqrt() / (x.abs() + fraction);
            return x.signum() * (1.0 - tail);
        }
        let mut term = x;
        let mut sum = x;
        for n in 1..100 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn exp_is_right_to_two_units_in_the_last_place() {
        for off in [
            worst(-87.0..=87.9, exp::<true>, f64::exp, |_, y| y),
            worst(-87.0..=87.9, exp::<false>, f64::exp, |_, y| y),
            worst(-1.0..=0.0, exp::<true>, f64::exp, |_, y| y),
        ] {
            assert!(off < 2.0 * f64::from(f32::EPSILON), "{off:e}");
        }
        assert_eq!(exp::<true>(0.0), 1.0);
    }

    #[test]
    fn tanh_is_right_to_a_small_relative_error_everywhere() {
        for range in [-10.0..=10.0, -0.5..=0.5, -1e-3..=1e-3] {
            let off = worst(range, tanh::<true>, f64::tanh, |_, y| y.abs().max(1e-30));
            assert!(off < 5e-7, "{off:e}");
        }
    }

    #[test]
    fn erf_is_right_to_4e_7() {
        let off = worst(-6.0..=6.0, erf::<true>, erf64, |_, _| 1.0);
        assert!(off < 4e-7, "{off:e}");
    }

    #[test]
    fn activations_are_right_to_3e_7_of_their_argument() {
        let per_x = |x: f64, _| x.abs().max(1.0);
        let gelu = |x: f64| 0.5 * x * (1.0 + erf64(x / 2f64.sqrt()));
        let gelu_new = |x: f64| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        };
        let silu_exact = |x: f64| x / (1.0 + (-x).exp());
        for off in [
            worst(-30.0..=30.0, gelu_erf::<true>, gelu, per_x),
            worst(-30.0..=30.0, gelu_tanh::<true>, gelu_new, per_x),
            worst(-100.0..=100.0, silu::<true>, silu_exact, per_x),
        ] {
            assert!(off < 3e-7, "{off:e}");
        }
    }
}
