// Tokens drawn from logits. A row is one thread's work from beginning to end, in an order that depends on nothing but the
// row: neither other rows nor the number of threads show in its token.
#pragma once

#include <cstdint>

namespace tandem {

// How a row's token is drawn; the fields of `SamplingSpec`, resolved.
struct DrawRow {
    double top_p;       // 1: no limit
    double min_p;       // 0: no limit
    int64_t top_k;      // 0: no limit
    uint64_t seed;
    uint64_t position;  // of the token
    float temperature;  // 0: the likeliest token
};

// One row's; `logits`: [vocab_size]. The first of equal tokens when the likeliest is asked for.
int64_t draw_token(const float* logits, int64_t vocab_size, const DrawRow& row);

}  // namespace tandem
