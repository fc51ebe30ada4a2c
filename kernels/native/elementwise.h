// What lies between the matrix products: norms, rotation with the store into the cache, and the gate.
#pragma once

#include "team.h"
#include "vector.h"

namespace tandem {

// residual += x (rounded to bf16), then y = residual / rms(residual) * weight; `x` null: nothing is added.
// All of `rows` rows of `width`, but `weight`: [width].
void add_rms_norm(
    const Team& team, const bf16* x, bf16* residual, const bf16* weight, float eps, int64_t num_rows, int64_t width,
    bf16* y);

// Angles of a step's rows: [num_rows, head_dim] each, `sin` negative in its first half.
struct Angles {
    const float* cos;
    const float* sin;
};

// Turns one head by a row's angles. `from` and `to` may be the same head.
void rotate(const bf16* from, const float* cos, const float* sin, int64_t head_dim, bf16* to);

// A layer's projected heads, rows of (query | key | value) heads one after another, and where keys and values go.
struct ProjectedHeads {
    bf16* rows;
    int64_t num_rows;
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    const bf16* norm_weight;  // [num_heads + num_kv_heads, head_dim] when query and key heads are normalised, or null
    float eps;
    bf16* key_cache;
    bf16* value_cache;
    const int64_t* slots;     // [num_rows]
};

// Normalises and turns query heads in place; normalises, turns and stores keys; stores values.
void rotate_and_store(const Team& team, const ProjectedHeads& heads, const Angles& angles);

// y = silu(gate) * up of [num_rows, 2 * width], gate before up; `y`: [num_rows, width].
void silu_mul(const Team& team, const bf16* gate_up, int64_t num_rows, int64_t width, bf16* y);

}  // namespace tandem
