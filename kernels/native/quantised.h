// Weights as small unsigned integers ("digits") in groups of kGroup neighbours along the summed dimension. A group's
// weights are scale * digit + minimum. Layout, as kernels/quantised.py makes it, with outputs padded to panels of
// kPanelOutputs and the summed dimension to groups, both with zeros:
//
// digits, int8    [panels, groups, 8, kPanelOutputs, 4]: quads of neighbours, minimum = -128 * scale
// digits, int4    [panels, groups, 4, kPanelOutputs, 4]: quad q in the low halves of the bytes, q + 4 in the high ones
// scales, int8    [panels, groups, kPanelOutputs] float16
// scales, int4    [panels, groups, 2, kPanelOutputs] float16: scales, then minima
#pragma once

#include "linear.h"

namespace tandem {

// As `linear`. Rows of `x` are rounded to 8 bits in the same groups, each with a scale of its own, so that the products
// are sums of integers.
template <typename Out>
void quantised_linear(const Team& team, const bf16* x, int64_t num_rows, const Weight& weight, Out* y);

}  // namespace tandem
