//! Many bytes in one instruction. All else in the pure core is safe code: what needs more is here.

/// Work on many bytes that the compiler can do in wide registers.
pub(crate) trait Wide {
    /// What it gives.
    type Out;
    /// Does it. It must be `#[inline(always)]`, and so must what it calls for that: only then is it compiled once more for
    /// processors with wide registers.
    fn run(self) -> Self::Out;
}

/// Does it in registers of 32 bytes where the processor has them: builds are for every x86-64, where they are 16.
#[inline]
pub(crate) fn wide<W: Wide>(work: W) -> W::Out {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2<W: Wide>(work: W) -> W::Out {
            work.run()
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            #[expect(unsafe_code, reason = "the compiler can't know which processor this is")]
            return unsafe { with_avx2(work) };
        }
    }
    work.run()
}

/// Bytes that [`stops`] looks at.
pub(crate) const BLOCK: usize = 32;

/// A bit for each byte that isn't plain in a JSON string: `"`, `\`, a control character.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn stops(block: &[u8; BLOCK]) -> u32 {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x, _mm_set1_epi8,
    };
    #[target_feature(enable = "sse2")]
    #[inline]
    fn half(low: i64, high: i64) -> u32 {
        let bytes = _mm_set_epi64x(high, low);
        let quotes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"' as i8));
        let slashes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8));
        let controls = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quotes, slashes), controls)) as u32
    }
    let [a, b, c, d] = [0, 8, 16, 24].map(|at| block[at..].first_chunk().map_or(0, |word| i64::from_le_bytes(*word)));
    // SAFETY: SSE2 is part of x86-64.
    #[expect(unsafe_code, reason = "the compiler doesn't write this instruction by itself")]
    unsafe {
        half(a, b) | half(c, d) << 16
    }
}

/// A bit for each byte that isn't plain in a JSON string: `"`, `\`, a control character.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) fn stops(block: &[u8; BLOCK]) -> u32 {
    let mut flags = [0; BLOCK];
    for (flag, &byte) in flags.iter_mut().zip(block) {
        *flag = u8::from((byte == b'"') | (byte == b'\\') | (byte < 0x20));
    }
    // The product has the flags of eight bytes side by side in its highest byte.
    let bits = |word: &[u8; 8]| (u64::from_le_bytes(*word).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32;
    let (words, _) = flags.as_chunks::<8>();
    words.iter().enumerate().fold(0, |stops, (place, word)| stops | bits(word) << (8 * place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_that_is_not_plain_has_its_bit() {
        for byte in 0..=255_u8 {
            for place in 0..BLOCK {
                let mut block = [b'a'; BLOCK];
                block[place] = byte;
                let stop = byte < 0x20 || byte == b'"' || byte == b'\\';
                assert_eq!(stops(&block), u32::from(stop) << place, "{byte:#x} at {place}");
            }
        }
        assert_eq!(stops(&[b'"'; BLOCK]), u32::MAX);
    }
}
