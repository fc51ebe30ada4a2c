// AVX2 with FMA; see vector.h, which includes this. bfloat16 is widened by shifts and multiplied as float32; a product's
// left side is widened once, ahead of it.
#pragma once

namespace tandem {

// How many lanes, or halves of words, from the first on.
struct Lanes {
    int count;
};
struct Halves {
    int count;
};

using Vector = __m256;
using Words = __m256i;
using Factor = float;
using Operand = __m256;

constexpr int kLanes = 8;
constexpr int kOperand = 8;
constexpr int kWordSteps = 2;  // even and odd halves
constexpr int kTileRows = 5;   // 5 x 2 sums, 2 of the panel, 1 broadcast, 1 mask; with 6 x 2 sums go to memory
constexpr int kTileVectors = 2;
constexpr int64_t kPackedRows = 32;  // from here on packing weights pays

inline Lanes first_lanes(int64_t count) { return {static_cast<int>(std::clamp<int64_t>(count, 0, kLanes))}; }
inline Halves first_halves(int64_t count) { return {static_cast<int>(std::clamp<int64_t>(count, 0, 2 * kLanes))}; }

inline __m256i lane_numbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
inline __m256i mask_of(Lanes lanes) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes.count), lane_numbers()); }

inline Vector spread(float value) { return _mm256_set1_ps(value); }
inline Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
inline Vector magnitude(Vector x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline Vector nearest(Vector x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vector fused(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }

// For whole exponents of at most 127; 0 where the power is subnormal.
inline Vector times_power_of_two(Vector x, Vector exponent) {
    const __m256i whole = _mm256_cvtps_epi32(larger(exponent, spread(-127.0f)));
    return x * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(whole, _mm256_set1_epi32(127)), 23));
}

inline float sum_of(Vector x) {
    __m128 half = _mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1);
    half = half + _mm_movehl_ps(half, half);
    return half[0] + half[1];
}

inline float largest_of(Vector x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return std::max(half[0], half[1]);
}

// Lanes whose bit is 0 become `other`'s.
inline Vector keep(Vector x, uint64_t bits, Vector other) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i own = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), bit);
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, bit)));
}

inline Vector where_negative(Vector x, Vector then, Vector otherwise) { return _mm256_blendv_ps(otherwise, then, x); }

// Lane i is lane first + i, counted around.
inline Vector from_lane(Vector x, int first) {
    return _mm256_permutevar8x32_ps(x, _mm256_add_epi32(lane_numbers(), _mm256_set1_epi32(first)));
}

inline Vector widen(__m128i values) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16));
}

// To the nearest, ties to even; what is not a number stays so.
inline __m128i narrow(Vector values) {
    const __m256i bits = _mm256_castps_si256(values), kept = _mm256_srli_epi32(bits, 16);
    const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7FFF), _mm256_and_si256(kept, _mm256_set1_epi32(1)));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    const __m256i quiet = _mm256_or_si256(kept, _mm256_set1_epi32(0x40));
    const __m256i unordered = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, unordered);
    return _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256(chosen, 1));
}

inline Vector load(const bf16* from) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
inline Vector load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(bf16* to, Vector values) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow(values)); }
inline void store(float* to, Vector values) { _mm256_storeu_ps(to, values); }

// There are no masked accesses to 16 bits: what is short goes through a buffer.
inline Vector load(const bf16* from, Lanes lanes) {
    if (lanes.count == kLanes) return load(from);
    bf16 buffer[kLanes] = {};
    std::memcpy(buffer, from, lanes.count * sizeof(bf16));
    return load(buffer);
}
inline Vector load(const float* from, Lanes lanes) { return _mm256_maskload_ps(from, mask_of(lanes)); }
inline void store(bf16* to, Vector values, Lanes lanes) {
    if (lanes.count == kLanes) return store(to, values);
    bf16 buffer[kLanes];
    store(buffer, values);
    std::memcpy(to, buffer, lanes.count * sizeof(bf16));
}
inline void store(float* to, Vector values, Lanes lanes) { _mm256_maskstore_ps(to, mask_of(lanes), values); }

inline Words load_words(const bf16* from, Halves halves) {
    if (halves.count == 2 * kLanes) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    bf16 buffer[2 * kLanes] = {};
    std::memcpy(buffer, from, halves.count * sizeof(bf16));
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(buffer));
}
inline void store_words(uint32_t* to, Words words) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words); }

// `count` elements from `from` on.
inline void as_factors(const bf16* from, int64_t count, Factor* to) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    if (i < count) store(to + i, load(from + i, first_lanes(count - i)), first_lanes(count - i));
}
inline const Factor* as_factors(const bf16* from, int64_t count, Buffer<Factor>& room) {
    if (static_cast<int64_t>(room.size()) < count) room.resize(count);
    as_factors(from, count, room.data());
    return room.data();
}

inline Operand load_operand(const bf16* from) { return load(from); }
inline Operand load_operand(const float* from) { return load(from); }
inline Operand load_operand(const bf16* from, int64_t count) { return load(from, first_lanes(count)); }
inline Operand load_operand(const float* from, int64_t count) { return load(from, first_lanes(count)); }
inline Operand load_columns(const uint32_t* words, int step) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    const __m256i odd = _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xFFFF0000)));
    return _mm256_castsi256_ps(step ? odd : _mm256_slli_epi32(both, 16));
}
inline Operand spread_row(const Factor* from, int step) { return _mm256_broadcast_ss(from + step); }
inline Vector add_products(Vector sum, Operand a, Operand b) { return fused(a, b, sum); }

// Lane i of the result is the sum over the lanes of sums[i].
inline Vector sum_lanes(Vector (&sums)[kLanes]) {
    for (int i = 0; i < 8; i += 2) sums[i] = _mm256_hadd_ps(sums[i], sums[i + 1]);
    const Vector low = _mm256_hadd_ps(sums[0], sums[2]), high = _mm256_hadd_ps(sums[4], sums[6]);
    return _mm256_permute2f128_ps(low, high, 0x20) + _mm256_permute2f128_ps(low, high, 0x31);
}

// rows[i] word j becomes rows[j] word i.
inline void transpose(Words (&rows)[kLanes]) {
    Words part[kLanes];
    for (int i = 0; i < 8; i += 2) {
        part[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        part[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        rows[i] = _mm256_unpacklo_epi64(part[i], part[i + 2]);
        rows[i + 1] = _mm256_unpackhi_epi64(part[i], part[i + 2]);
        rows[i + 2] = _mm256_unpacklo_epi64(part[i + 1], part[i + 3]);
        rows[i + 3] = _mm256_unpackhi_epi64(part[i + 1], part[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        part[i] = _mm256_permute2x128_si256(rows[i], rows[i + 4], 0x20);
        part[i + 4] = _mm256_permute2x128_si256(rows[i], rows[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) rows[i] = part[i];
}

// Stores the halves of `even` and `odd` in turn, as words from `to` on.
inline void store_interleaved(uint32_t* to, Words even, Words odd) {
    const Words low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
    store_words(to, _mm256_permute2x128_si256(low, high, 0x20));
    store_words(to + kLanes, _mm256_permute2x128_si256(low, high, 0x31));
}

}  // namespace tandem
