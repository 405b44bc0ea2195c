//! Which vector instructions the kernels may use, found once at run time.

use std::sync::OnceLock;

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// AVX-512: 16 floats, 32 registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 with FMA: 8 floats, 16 registers.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the target always has.
    Portable,
}

impl Isa {
    /// The best one this machine has.
    pub(super) fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| *Isa::available().first().unwrap_or(&Isa::Portable))
    }

    /// Every one this machine has, best first.
    pub(super) fn available() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                found.push(Isa::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Isa::Avx2);
            }
        }
        found.push(Isa::Portable);
        found
    }
}

/// Defines `fn name(isa, args...)`, which runs `body` compiled for that instruction set. `FUSED` in the body
/// says whether a multiply-add is one instruction there: where it is not, `f32::mul_add` is a slow library call.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) => $body:ident) => {
        $(#[$doc])*
        pub(super) fn $name(isa: $crate::model::ops::native::isa::Isa, $($arg: $type),*) {
            use $crate::model::ops::native::isa::Isa;

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,fma")]
            fn avx512($($arg: $type),*) {
                $body::<true>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) {
                $body::<true>($($arg),*)
            }
            match isa {
                // SAFETY: an `Isa` other than Portable is only made where the machine has it.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                Isa::Portable => $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*),
            }
        }
    };
}
pub(super) use for_each_isa;
