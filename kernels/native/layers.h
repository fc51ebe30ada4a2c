// All layers of a pre-norm transformer in one parallel region: what tandem/model/layers.py composes, without returning
// to Python between operators.
#pragma once

#include "attention.h"
#include "elementwise.h"
#include "linear.h"

namespace tandem {

struct Layer {
    const bf16* attention_norm;
    const bf16* mlp_norm;
    const bf16* qk_norm;  // or null
    Weight qkv;
    Weight attention_output;
    Weight gate_up;
    Weight down;
};

struct Stack {
    const Layer* layers;
    int64_t num_layers;
    const bf16* final_norm;
    Heads heads;
    int64_t hidden_size;
    int64_t intermediate_size;
    float eps;
    float scale;
};

// One step. `residual` comes in as the embedded rows and may be used up; `hidden` leaves as the normalised hidden states.
struct StackStep {
    StepShape shape;
    int64_t num_rows;
    Angles angles;         // [num_rows, head_dim]
    const int64_t* slots;  // [num_rows]
    bf16* kv_cache;        // [num_layers, 2, num_slots, num_kv_heads, head_dim]
    int64_t cache_stride;  // elements of one layer's keys, and of its values
    bf16* residual;        // [num_rows, hidden_size]
    bf16* hidden;          // [num_rows, hidden_size]
    bf16* scratch;         // tandem_stack_scratch elements
};

}  // namespace tandem
