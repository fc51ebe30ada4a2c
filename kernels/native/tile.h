// The register-blocked product that prefill's linears and attention share, and the packing that it reads.
//
// A panel holds kPanel columns as slices of kTileColumns, one after another, each as pairs along the summed dimension:
// pair p of column c of a slice is its 32-bit word p * kTileColumns + c.
#pragma once

#include "vector.h"

namespace tandem {

constexpr int kPanel = 64;                           // columns
constexpr int kPanelVectors = kPanel / kLanes;
constexpr int kTileColumns = kTileVectors * kLanes;  // whose sums are in registers at a time

// sums[r][v] += rows r of `a` times the panel's vector v. `a_stride` in elements, `b_stride` in words.
template <int kRows>
inline __attribute__((always_inline)) void multiply(
    const Factor* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, int64_t num_pairs,
    Vector (&sums)[kRows][kTileVectors]) {
    for (int64_t pair = 0; pair < num_pairs; pair++) {
#pragma GCC unroll 2
        for (int step = 0; step < kWordSteps; step++) {
            Operand column[kTileVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kTileVectors; v++) column[v] = load_columns(b + pair * b_stride + v * kLanes, step);
#pragma GCC unroll 6
            for (int r = 0; r < kRows; r++) {
                const Operand row = spread_row(a + r * a_stride + 2 * pair, step);
#pragma GCC unroll 4
                for (int v = 0; v < kTileVectors; v++) sums[r][v] = add_products(sums[r][v], row, column[v]);
            }
        }
    }
}

// Words of `num_columns` columns of `width` elements, the transposition's padding included.
inline int64_t column_words(int64_t width, int64_t num_columns) {
    return round_up(width, 2 * kLanes) / 2 * num_columns;
}

// Packs kPanel rows of `width` elements, each `offset` after its pointer (null: zeros), as a panel's columns, with zeros
// up to its end. `ahead`: elements from a row to the one that is needed kLanes rows later.
inline void pack_panel(
    const bf16* const* columns, int64_t offset, int64_t width, int64_t ahead, uint32_t* panel) {
    for (int group = 0; group < kPanel; group += kLanes) {
        const int in_slice = group % kTileColumns;
        uint32_t* columns_to = panel + column_words(width, group - in_slice) + in_slice;
        for (int64_t start = 0; start < width; start += 2 * kLanes) {
            const Halves in_row = first_halves(width - start);
            Words rows[kLanes];
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; i++) {
                const bf16* column = columns[group + i];
                const bf16* from = column + offset + start;
                _mm_prefetch(reinterpret_cast<const char*>(from + ahead), _MM_HINT_T0);
                rows[i] = column ? load_words(from, in_row) : Words{};
            }
            transpose(rows);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; i++) store_words(columns_to + (start / 2 + i) * kTileColumns, rows[i]);
        }
    }
}

}  // namespace tandem
