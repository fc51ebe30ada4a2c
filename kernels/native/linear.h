// y = x @ weight.T + bias over bfloat16 weights as the checkpoint has them: [out_width, in_width], row by row.
#pragma once

#include "team.h"
#include "vector.h"

namespace tandem {

struct Weight {
    const bf16* values;  // [out_width, in_width]
    const bf16* bias;    // [out_width], or null
    int64_t out_width;
    int64_t in_width;
};

// `x`: [num_rows, in_width]; `y`: [num_rows, out_width] of bf16 or float.
template <typename Out>
void linear(const Team& team, const bf16* x, int64_t num_rows, const Weight& weight, Out* y);

}  // namespace tandem
