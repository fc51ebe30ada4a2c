// Steps of a few rows: every thread computes what is small by itself, and takes pieces of what is large (pieces.h).
#pragma once

#include "layers.h"

namespace tandem {

// Elements of the scratch of a step of `num_rows` rows.
int64_t short_scratch(const Stack& stack, int64_t num_rows);

// All layers, for a step that is done `in_pieces`. `step.residual` stays as it is.
void run_short(const Stack& stack, const StackStep& step);

}  // namespace tandem
