// y = x @ weight.T + bias over bfloat16 weights as the checkpoint has them, [out_width, in_width] row by row, or over
// quantised ones (quantised.h).
#pragma once

#include "pieces.h"
#include "team.h"
#include "vector.h"

namespace tandem {

enum class Format : int64_t { kBfloat16, kInt8, kInt4 };

struct Weight {
    const bf16* values;  // [out_width, in_width]; null of a quantised weight
    const bf16* bias;    // [out_width], or null
    int64_t out_width;
    int64_t in_width;
    Format format = Format::kBfloat16;
    const uint8_t* digits = nullptr;   // of a quantised weight
    const uint16_t* scales = nullptr;  // float16, of a quantised weight
};

// `x`: [num_rows, in_width]; `y`: [num_rows, out_width] of bf16 or float.
template <typename Out>
void linear(const Team& team, const bf16* x, int64_t num_rows, const Weight& weight, Out* y);

// Whether a step is so short that its products are done in pieces; many threads would look for them too often.
inline bool in_pieces(int64_t num_rows, int num_threads) {
    return num_rows <= 4 && num_threads > 1 && num_threads <= 8;
}

// How many pieces are worth their while.
int64_t num_linear_pieces(const Weight& weight);

// As `linear`, by the threads that take `pieces`, of which there are `num_linear_pieces`.
template <typename Out>
void linear_by_pieces(const Pieces& pieces, int rank, const bf16* x, int64_t num_rows, const Weight& weight, Out* y);

}  // namespace tandem
