// AVX512 with its 8-bit dot products (VNNI); see bytes.h, which includes this.
#pragma once

namespace tandem {

using Bytes = __m512i;
using Integers = __m512i;

inline Bytes load_bytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
inline Bytes low_halves(Bytes bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline Bytes high_halves(Bytes bytes) { return low_halves(_mm512_srli_epi16(bytes, 4)); }
inline Integers spread_integer(int32_t value) { return _mm512_set1_epi32(value); }
inline Integers add_quads(Integers sum, Bytes digits, Bytes x) { return _mm512_dpbusd_epi32(sum, digits, x); }
inline Vector to_floats(Integers values) { return _mm512_cvtepi32_ps(values); }

inline Vector load_float16(const uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline void store_bytes(int8_t* to, Vector values) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(values)));
}

}  // namespace tandem
