#include "elementwise.h"

#include <cmath>
#include <cstring>

#include "api.h"

namespace tandem {
namespace {

float inverse_rms(const bf16* row, int64_t width, float eps) {
    Vector squares{};
    for (int64_t i = 0; i < width; i += kLanes) {
        const Vector x = load(row + i, first_lanes(width - i));
        squares = fused(x, x, squares);
    }
    return 1.0f / std::sqrt(sum_of(squares) / static_cast<float>(width) + eps);
}

void scale_row(const bf16* row, const bf16* weight, float factor, int64_t width, bf16* y) {
    for (int64_t i = 0; i < width; i += kLanes) {
        const Lanes lanes = first_lanes(width - i);
        const Vector normed = load(row + i, lanes) * spread(factor);
        store(y + i, normed * load(weight + i, lanes), lanes);
    }
}

void add_row(const bf16* x, bf16* residual, int64_t width) {
    for (int64_t i = 0; i < width; i += kLanes) {
        const Lanes lanes = first_lanes(width - i);
        store(residual + i, load(residual + i, lanes) + load(x + i, lanes), lanes);
    }
}

}  // namespace

void rotate(const bf16* from, const float* cos, const float* sin, int64_t head_dim, bf16* to) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i += kLanes) {
        const Lanes lanes = first_lanes(half - i);
        const Vector first = load(from + i, lanes), second = load(from + half + i, lanes);
        const auto turn = [&](Vector kept, Vector swapped, int64_t at) {
            const Vector crossed = swapped * load(sin + at, lanes);
            store(to + at, fused(kept, load(cos + at, lanes), crossed), lanes);
        };
        turn(first, second, i);
        turn(second, first, half + i);
    }
}

void add_rms_norm(
    const Team& team, const bf16* x, bf16* residual, const bf16* weight, float eps, int64_t num_rows, int64_t width,
    bf16* y) {
    const Range rows = team.share(num_rows, 1);
    for (int64_t row = rows.first; row < rows.end; row++) {
        bf16* sum = residual + row * width;
        if (x) add_row(x + row * width, sum, width);
        scale_row(sum, weight, inverse_rms(sum, width, eps), width, y + row * width);
    }
}

void rotate_and_store(const Team& team, const ProjectedHeads& heads, const Angles& angles) {
    const int64_t dim = heads.head_dim, num_turned = heads.num_heads + heads.num_kv_heads;
    const int64_t row_width = (num_turned + heads.num_kv_heads) * dim;
    const Range rows = team.share(heads.num_rows, 1);
    for (int64_t row = rows.first; row < rows.end; row++) {
        bf16* projected = heads.rows + row * row_width;
        const int64_t stored = heads.slots[row] * heads.num_kv_heads * dim;
        for (int64_t head = 0; head < num_turned; head++) {
            bf16* from = projected + head * dim;
            bf16* to = head < heads.num_heads ? from : heads.key_cache + stored + (head - heads.num_heads) * dim;
            if (heads.norm_weight) {
                scale_row(from, heads.norm_weight + head * dim, inverse_rms(from, dim, heads.eps), dim, from);
            }
            rotate(from, angles.cos + row * dim, angles.sin + row * dim, dim, to);
        }
        std::memcpy(heads.value_cache + stored, projected + num_turned * dim, heads.num_kv_heads * dim * sizeof(bf16));
    }
}

void silu_mul(const Team& team, const bf16* gate_up, int64_t num_rows, int64_t width, bf16* y) {
    const Range rows = team.share(num_rows, 1);
    for (int64_t row = rows.first; row < rows.end; row++) {
        const bf16 *gate = gate_up + row * 2 * width, *up = gate + width;
        for (int64_t i = 0; i < width; i += kLanes) {
            const Lanes lanes = first_lanes(width - i);
            const Vector x = load(gate + i, lanes);
            // silu(x) = x / (1 + e**-x); for positive x e**-x is e**-|x|, for others it is 1 / e**-|x|.
            const Vector small = exp_nonpositive(-magnitude(x));
            const Vector below = spread(1.0f) + small;
            const Vector above = where_negative(x, x * small, x);
            store(y + row * width + i, above / below * load(up + i, lanes), lanes);
        }
    }
}

}  // namespace tandem

TANDEM_API void tandem_add_rms_norm(
    const void* x, void* residual, const void* weight, float eps, int64_t num_rows, int64_t width, void* y) {
    using namespace tandem;
#pragma omp parallel
    add_rms_norm(
        Team{}, static_cast<const bf16*>(x), static_cast<bf16*>(residual), static_cast<const bf16*>(weight), eps,
        num_rows, width, static_cast<bf16*>(y));
}

TANDEM_API void tandem_rotate_and_store(const tandem::ProjectedHeads* heads, const float* cos, const float* sin) {
    using namespace tandem;
#pragma omp parallel
    rotate_and_store(Team{}, *heads, {cos, sin});
}

TANDEM_API void tandem_silu_mul(const void* gate_up, int64_t num_rows, int64_t width, void* y) {
    using namespace tandem;
#pragma omp parallel
    silu_mul(Team{}, static_cast<const bf16*>(gate_up), num_rows, width, static_cast<bf16*>(y));
}
