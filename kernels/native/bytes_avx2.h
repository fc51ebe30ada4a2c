// AVX2 has no 8-bit dot product whose sums cannot overflow: bytes are widened to 16 bits, even and odd ones apart. See
// bytes.h, which includes this.
#pragma once

namespace tandem {

using Bytes = __m256i;
using Integers = __m256i;

inline Bytes load_bytes(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Bytes low_halves(Bytes bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
inline Bytes high_halves(Bytes bytes) { return low_halves(_mm256_srli_epi16(bytes, 4)); }
inline Integers spread_integer(int32_t value) { return _mm256_set1_epi32(value); }

inline Integers add_quads(Integers sum, Bytes digits, Bytes x) {
    const __m256i even = _mm256_and_si256(digits, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(digits, 8);
    const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), x_odd = _mm256_srai_epi16(x, 8);
    const __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16(even, x_even), _mm256_madd_epi16(odd, x_odd));
    return _mm256_add_epi32(sum, pairs);
}

inline Vector to_floats(Integers values) { return _mm256_cvtepi32_ps(values); }

inline Vector load_float16(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline void store_bytes(int8_t* to, Vector values) {
    const __m256i words = _mm256_cvtps_epi32(values);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(halves, halves));
}

}  // namespace tandem
