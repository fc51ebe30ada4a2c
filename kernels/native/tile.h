// The register-blocked product that prefill's linears and attention share, and the packing that it reads.
//
// A panel holds kPanel columns as pairs along the summed dimension: pair p of column c is 32-bit word p * kPanel + c.
#pragma once

#include "vector.h"

namespace tandem {

constexpr int kPanel = 64;                       // columns
constexpr int kPanelVectors = kPanel / kLanes;   // 4 vectors of sums a row
constexpr int kTileRows = 6;                     // 6 x 4 sums, 4 of the panel, 1 broadcast: 29 of 32 registers

// sums[r][v] += rows r of `a` times the panel's vector v. `a_stride` in elements, `b_stride` in words.
template <int kRows>
inline __attribute__((always_inline)) void multiply(
    const bf16* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, int64_t num_pairs,
    __m512 (&sums)[kRows][kPanelVectors]) {
    for (int64_t pair = 0; pair < num_pairs; pair++) {
        __m512i column[kPanelVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; v++) column[v] = _mm512_loadu_si512(b + pair * b_stride + v * kLanes);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; r++) {
            int32_t both;
            __builtin_memcpy(&both, a + r * a_stride + 2 * pair, sizeof both);
            const __m512i row = _mm512_set1_epi32(both);
#pragma GCC unroll 4
            for (int v = 0; v < kPanelVectors; v++) sums[r][v] = dot_pairs(sums[r][v], row, column[v]);
        }
    }
}

// Packs kPanel rows of `width` elements, each `offset` after its pointer (null: zeros), as a panel's columns, with zeros
// up to its end. `ahead`: elements from a row to the one that is needed kLanes rows later.
inline void pack_panel(
    const bf16* const* columns, int64_t offset, int64_t width, int64_t ahead, uint32_t* panel) {
    for (int group = 0; group < kPanel; group += kLanes) {
        for (int64_t start = 0; start < width; start += 2 * kLanes) {
            const __mmask32 in_row = first_halves(width - start);
            __m512i rows[kLanes];
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; i++) {
                const bf16* column = columns[group + i];
                const bf16* from = column + offset + start;
                _mm_prefetch(reinterpret_cast<const char*>(from + ahead), _MM_HINT_T0);
                rows[i] = column ? _mm512_maskz_loadu_epi16(in_row, from) : _mm512_setzero_si512();
            }
            transpose(rows);
            uint32_t* to = panel + start / 2 * kPanel + group;
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; i++) _mm512_storeu_si512(to + i * kPanel, rows[i]);
        }
    }
}

// Words of a panel of `width`, the transposition's padding included.
inline int64_t panel_words(int64_t width) { return round_up(width, 2 * kLanes) / 2 * kPanel; }

}  // namespace tandem
