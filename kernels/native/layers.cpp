#include "layers.h"

#include "api.h"
#include "short_step.h"

namespace tandem {
namespace {

// Where a step's intermediate values lie in its scratch.
struct Buffers {
    bf16* projected;  // [num_rows, qkv width]
    bf16* attended;   // [num_rows, num_heads * head_dim]
    bf16* gate_up;    // [num_rows, 2 * intermediate_size]
    bf16* gated;      // [num_rows, intermediate_size]
    bf16* change;     // [num_rows, hidden_size]: what a half layer adds to the residual

    static int64_t elements(const Stack& s, int64_t num_rows) {
        return num_rows * (s.heads.qkv_width() + s.heads.num_heads * s.heads.head_dim + 3 * s.intermediate_size + s.hidden_size);
    }

    Buffers(const Stack& s, const StackStep& step) {
        projected = step.scratch;
        attended = projected + step.num_rows * s.heads.qkv_width();
        gate_up = attended + step.num_rows * s.heads.num_heads * s.heads.head_dim;
        gated = gate_up + step.num_rows * 2 * s.intermediate_size;
        change = gated + step.num_rows * s.intermediate_size;
    }
};

struct LayerRun {
    const Team& team;
    const Stack& stack;
    const StackStep& step;
    const Buffers& buffers;
    AttentionWork& work;

    void normalise(const bf16* change, const bf16* weight) const {
        add_rms_norm(
            team, change, step.residual, weight, stack.eps, step.num_rows, stack.hidden_size, step.hidden);
        team.wait();
    }

    void attention(const Layer& layer, int64_t index, std::atomic<int64_t>& taken) const {
        bf16* keys = step.kv_cache + 2 * index * step.cache_stride;
        bf16* values = keys + step.cache_stride;
        const Heads& heads = stack.heads;
        linear(team, step.hidden, step.num_rows, layer.qkv, buffers.projected);
        team.wait();
        const ProjectedHeads projected{
            buffers.projected, step.num_rows, heads.num_heads, heads.num_kv_heads, heads.head_dim,
            layer.qk_norm, stack.eps, keys, values, step.slots};
        rotate_and_store(team, projected, step.angles);
        team.wait();
        const AttentionCall call{
            work, buffers.projected, heads.qkv_width(), keys, values, buffers.attended, work.partials(0),
            stack.scale};
        call.attend(taken);
        team.wait();
        if (call.splits()) {
            call.merge(team);
            team.wait();
        }
        linear(team, buffers.attended, step.num_rows, layer.attention_output, buffers.change);
        team.wait();
    }

    void mlp(const Layer& layer) const {
        linear(team, step.hidden, step.num_rows, layer.gate_up, buffers.gate_up);
        team.wait();
        silu_mul(team, buffers.gate_up, step.num_rows, stack.intermediate_size, buffers.gated);
        team.wait();
        linear(team, buffers.gated, step.num_rows, layer.down, buffers.change);
        team.wait();
    }
};

}  // namespace
}  // namespace tandem

// Elements of a step's scratch, with as many threads as it will have.
TANDEM_API int64_t tandem_stack_scratch(const tandem::Stack* stack, int64_t num_rows) {
    using namespace tandem;
    if (in_pieces(num_rows, omp_get_max_threads())) return short_scratch(*stack, num_rows);
    return Buffers::elements(*stack, num_rows);
}

TANDEM_API void tandem_run_stack(const tandem::Stack* stack, const tandem::StackStep* step) {
    using namespace tandem;
    if (in_pieces(step->num_rows, omp_get_max_threads())) return run_short(*stack, *step);
    const Buffers buffers(*stack, *step);
    AttentionWork work(step->shape, stack->heads, omp_get_max_threads());
    std::vector<std::atomic<int64_t>> taken(stack->num_layers);
    Barrier barrier;
#pragma omp parallel
    {
        const Team team{&barrier};
        const LayerRun run{team, *stack, *step, buffers, work};
        const bf16* change = nullptr;
        for (int64_t i = 0; i < stack->num_layers; i++) {
            const Layer& layer = stack->layers[i];
            run.normalise(change, layer.attention_norm);
            run.attention(layer, i, taken[i]);
            run.normalise(buffers.change, layer.mlp_norm);
            run.mlp(layer);
            change = buffers.change;
        }
        run.normalise(change, stack->final_norm);
    }
}
