// AVX512 with its bfloat16 instructions; see vector.h, which includes this. A product's left side stays bfloat16: pairs
// are multiplied as they are.
#pragma once

namespace tandem {

using Vector = __m512;
using Words = __m512i;
using Lanes = __mmask16;
using Halves = __mmask32;
using Factor = bf16;
using Operand = __m512i;

constexpr int kLanes = 16;
constexpr int kOperand = 32;
constexpr int kWordSteps = 1;  // both halves at once
constexpr int kTileRows = 6;   // 6 x 4 sums, 4 of the panel, 1 broadcast: 29 of 32 registers
constexpr int kTileVectors = 4;
constexpr int64_t kPackedRows = 56;  // from here on packing weights pays

inline Lanes first_lanes(int64_t count) { return static_cast<Lanes>(first_bits(count, 16)); }
inline Halves first_halves(int64_t count) { return static_cast<Halves>(first_bits(count, 32)); }

inline Vector spread(float value) { return _mm512_set1_ps(value); }
inline Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }
inline Vector magnitude(Vector x) { return _mm512_abs_ps(x); }
inline Vector nearest(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vector fused(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
inline Vector times_power_of_two(Vector x, Vector exponent) { return _mm512_scalef_ps(x, exponent); }
inline float sum_of(Vector x) { return _mm512_reduce_add_ps(x); }
inline float largest_of(Vector x) { return _mm512_reduce_max_ps(x); }

// Lanes whose bit is 0 become `other`'s.
inline Vector keep(Vector x, uint64_t bits, Vector other) {
    return _mm512_mask_mov_ps(other, static_cast<__mmask16>(bits), x);
}

inline Vector where_negative(Vector x, Vector then, Vector otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), then);
}

// Lane i is lane first + i, counted around.
inline Vector from_lane(Vector x, int first) {
    const __m512i all = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(_mm512_add_epi32(all, _mm512_set1_epi32(first)), x);
}

inline Vector widen(__m256i values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}
inline __m256i narrow(Vector values) { return (__m256i)_mm512_cvtneps_pbh(values); }

inline Vector load(const bf16* from, Lanes lanes) { return widen(_mm256_maskz_loadu_epi16(lanes, from)); }
inline Vector load(const float* from, Lanes lanes) { return _mm512_maskz_loadu_ps(lanes, from); }
inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(bf16* to, Vector values, Lanes lanes) { _mm256_mask_storeu_epi16(to, lanes, narrow(values)); }
inline void store(float* to, Vector values, Lanes lanes) { _mm512_mask_storeu_ps(to, lanes, values); }
inline void store(bf16* to, Vector values) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(values)); }
inline void store(float* to, Vector values) { _mm512_storeu_ps(to, values); }

inline Words load_words(const bf16* from, Halves halves) { return _mm512_maskz_loadu_epi16(halves, from); }
inline void store_words(uint32_t* to, Words words) { _mm512_storeu_si512(to, words); }

// `count` elements from `from` on; `room` is not needed.
inline const Factor* as_factors(const bf16* from, int64_t, Buffer<Factor>&) { return from; }
inline void as_factors(const bf16* from, int64_t count, Factor* to) { std::memcpy(to, from, count * sizeof(bf16)); }

inline Operand load_operand(const bf16* from) { return _mm512_loadu_si512(from); }
inline Operand load_operand(const bf16* from, int64_t count) { return load_words(from, first_halves(count)); }
inline Operand load_columns(const uint32_t* words, int) { return _mm512_loadu_si512(words); }
inline Operand spread_row(const Factor* from, int) {
    int32_t both;
    std::memcpy(&both, from, sizeof both);
    return _mm512_set1_epi32(both);
}

inline Vector add_products(Vector sum, Operand a, Operand b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// Lane i of the result is the sum over the lanes of sums[i]: each step halves the vectors and the lanes left to add.
inline Vector sum_lanes(Vector (&sums)[kLanes]) {
    for (int i = 0; i < 8; i++) {
        const Vector low = _mm512_shuffle_f32x4(sums[i], sums[i + 8], 0x44);
        const Vector high = _mm512_shuffle_f32x4(sums[i], sums[i + 8], 0xEE);
        sums[i] = low + high;  // 128-bit parts: i, i, i + 8, i + 8
    }
    for (int i = 0; i < 4; i++) {
        const Vector even = _mm512_shuffle_f32x4(sums[i], sums[i + 4], 0x88);
        const Vector odd = _mm512_shuffle_f32x4(sums[i], sums[i + 4], 0xDD);
        sums[i] = even + odd;  // i, i + 8, i + 4, i + 12
    }
    for (int i = 0; i < 2; i++) {
        const Vector low = _mm512_shuffle_ps(sums[i], sums[i + 2], 0x44);
        const Vector high = _mm512_shuffle_ps(sums[i], sums[i + 2], 0xEE);
        sums[i] = low + high;  // in each part: two of i, two of i + 2
    }
    const Vector even = _mm512_shuffle_ps(sums[0], sums[1], 0x88);
    const Vector odd = _mm512_shuffle_ps(sums[0], sums[1], 0xDD);
    const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    return _mm512_permutexvar_ps(order, even + odd);  // in each part: p, p + 2, p + 1, p + 3 of p = 0, 8, 4, 12
}

// rows[i] word j becomes rows[j] word i.
inline void transpose(Words (&rows)[kLanes]) {
    Words part[kLanes];
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

// Stores the halves of `even` and `odd` in turn, as words from `to` on.
inline void store_interleaved(uint32_t* to, Words even, Words odd) {
    alignas(64) static constexpr uint16_t kFirst[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                        8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i first = _mm512_load_si512(kFirst), second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    store_words(to, _mm512_permutex2var_epi16(even, first, odd));
    store_words(to + kLanes, _mm512_permutex2var_epi16(even, second, odd));
}

}  // namespace tandem
