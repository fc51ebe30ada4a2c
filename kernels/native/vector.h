// 512-bit helpers: bfloat16 in and out, sums across lanes, 16 x 16 transposition.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace tandem {

using bf16 = uint16_t;

constexpr int kLanes = 16;  // float32 values, or pairs of bfloat16, in a vector

inline int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
inline int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

// The first `count` of `width` bits; none for a negative count.
inline uint64_t first_bits(int64_t count, int width) {
    if (count <= 0) return 0;
    const uint64_t all = width == 64 ? ~0ull : (1ull << width) - 1;
    return count >= width ? all : (1ull << count) - 1;
}

inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>(first_bits(count, 16)); }
inline __mmask32 first_halves(int64_t count) { return static_cast<__mmask32>(first_bits(count, 32)); }

inline __m512 widen(__m256i values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline __m256i narrow(__m512 values) { return (__m256i)_mm512_cvtneps_pbh(values); }

inline __m512 load(const bf16* from, __mmask16 lanes) { return widen(_mm256_maskz_loadu_epi16(lanes, from)); }

inline void store(bf16* to, __m512 values, __mmask16 lanes) { _mm256_mask_storeu_epi16(to, lanes, narrow(values)); }
inline void store(float* to, __m512 values, __mmask16 lanes) { _mm512_mask_storeu_ps(to, lanes, values); }

// Brings `count` elements near by loading from each of their cache lines, in order. Such loads set off the hardware's
// stream prefetcher; prefetch instructions do not, and a core can have too few of them under way to fill its bandwidth.
inline void fetch_lines(const bf16* from, int64_t count) {
    for (int64_t i = 0; i < count; i += 32) asm volatile("" ::"r"(*static_cast<const volatile bf16*>(from + i)));
}

inline __m512 dot_pairs(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// e**x for x <= 0, within 2e-7 of it relatively; 0 below -87.
inline __m512 exp_nonpositive(__m512 x) {
    const __m512 scaled = _mm512_mul_ps(_mm512_max_ps(x, _mm512_set1_ps(-200.0f)), _mm512_set1_ps(1.44269504f));
    const __m512 whole = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(scaled, whole);  // within half of 0; 2**rest by Taylor's series
    __m512 power = _mm512_set1_ps(1.5403530e-4f);
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.3333558e-3f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(9.6181291e-3f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(5.5504109e-2f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(2.4022651e-1f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(6.9314718e-1f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(power, whole);
}

// Lane i of the result is the sum over the lanes of sums[i]: each step halves the vectors and the lanes left to add.
inline __m512 sum_lanes(__m512 (&sums)[16]) {
    for (int i = 0; i < 8; i++) {
        const __m512 low = _mm512_shuffle_f32x4(sums[i], sums[i + 8], 0x44);
        const __m512 high = _mm512_shuffle_f32x4(sums[i], sums[i + 8], 0xEE);
        sums[i] = _mm512_add_ps(low, high);  // 128-bit parts: i, i, i + 8, i + 8
    }
    for (int i = 0; i < 4; i++) {
        const __m512 even = _mm512_shuffle_f32x4(sums[i], sums[i + 4], 0x88);
        const __m512 odd = _mm512_shuffle_f32x4(sums[i], sums[i + 4], 0xDD);
        sums[i] = _mm512_add_ps(even, odd);  // i, i + 8, i + 4, i + 12
    }
    for (int i = 0; i < 2; i++) {
        const __m512 low = _mm512_shuffle_ps(sums[i], sums[i + 2], 0x44);
        const __m512 high = _mm512_shuffle_ps(sums[i], sums[i + 2], 0xEE);
        sums[i] = _mm512_add_ps(low, high);  // in each part: two of i, two of i + 2
    }
    const __m512 even = _mm512_shuffle_ps(sums[0], sums[1], 0x88);
    const __m512 odd = _mm512_shuffle_ps(sums[0], sums[1], 0xDD);
    const __m512 all = _mm512_add_ps(even, odd);  // in each part: p, p + 2, p + 1, p + 3 of p = 0, 8, 4, 12
    const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    return _mm512_permutexvar_ps(order, all);
}

// rows[i] lane j becomes rows[j] lane i.
inline void transpose(__m512i (&rows)[16]) {
    __m512i part[16];
    for (int i = 0; i < 16; i += 2) {
        part[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        part[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(part[i], part[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(part[i], part[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(part[i + 1], part[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(part[i + 1], part[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        part[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
        part[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xDD);
        part[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
        part[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm512_shuffle_i32x4(part[i], part[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(part[i], part[i + 8], 0xDD);
        rows[i + 4] = _mm512_shuffle_i32x4(part[i + 4], part[i + 12], 0x88);
        rows[i + 12] = _mm512_shuffle_i32x4(part[i + 4], part[i + 12], 0xDD);
    }
}

}  // namespace tandem
