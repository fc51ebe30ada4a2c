// Copies cached tokens to other positions: what reuses a segment of KV somewhere else in a prompt.
#include <cstring>

#include "api.h"
#include "elementwise.h"

// See kernels/move_kv.py. `kv_cache`: [num_layers, 2, num_slots, num_kv_heads, head_dim]; slots: [num_tokens]; `cos`,
// `sin`: [num_tokens, head_dim].
TANDEM_API void tandem_move_kv(
    void* kv_cache, int64_t num_layers, int64_t num_slots, int64_t num_kv_heads, int64_t head_dim, const int64_t* sources,
    const int64_t* targets, int64_t num_tokens, const float* cos, const float* sin) {
    using namespace tandem;
    const int64_t width = num_kv_heads * head_dim;
#pragma omp parallel for collapse(2)
    for (int64_t layer = 0; layer < num_layers; layer++) {
        for (int64_t token = 0; token < num_tokens; token++) {
            bf16* keys = static_cast<bf16*>(kv_cache) + layer * 2 * num_slots * width;
            bf16* values = keys + num_slots * width;
            const int64_t from = sources[token] * width, to = targets[token] * width;
            for (int64_t head = 0; head < width; head += head_dim) {
                rotate(keys + from + head, cos + token * head_dim, sin + token * head_dim, head_dim, keys + to + head);
            }
            std::memcpy(values + to, values + from, width * sizeof(bf16));
        }
    }
}
