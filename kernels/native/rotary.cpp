// Angles of a step's rows.
#include <cmath>
#include <cstdint>

#include "api.h"

// See kernels/rotary.py. `frequencies`: [num_pairs], `positions`: [num_rows]; `cos`, `sin`: [num_rows, 2 * num_pairs].
TANDEM_API void tandem_rotary_table(
    const float* frequencies, int64_t num_pairs, const int64_t* positions, int64_t num_rows, float* cos, float* sin) {
#pragma omp parallel for if (num_rows > 64)
    for (int64_t row = 0; row < num_rows; row++) {
        float *row_cos = cos + row * 2 * num_pairs, *row_sin = sin + row * 2 * num_pairs;
        for (int64_t pair = 0; pair < num_pairs; pair++) {
            const float angle = static_cast<float>(positions[row]) * frequencies[pair];
            row_cos[pair] = row_cos[num_pairs + pair] = std::cos(angle);
            row_sin[num_pairs + pair] = std::sin(angle);
            row_sin[pair] = -row_sin[num_pairs + pair];
        }
    }
}
