#include "short_step.h"

#include "pieces.h"

namespace tandem {
namespace {

constexpr int64_t kSharedOperations = 5;  // a layer

// What the threads leave each other in one layer. No layer writes over another one's: see pieces.h.
struct Shared {
    bf16* projected;         // [num_rows, qkv width]
    bf16* attended;          // [num_rows, num_heads * head_dim]: of sequences whose keys are not split
    bf16* attention_change;  // [num_rows, hidden_size]: what a half layer adds to the residual
    bf16* gate_up;           // [num_rows, 2 * intermediate_size]
    bf16* mlp_change;        // [num_rows, hidden_size]

    static int64_t row_elements(const Stack& s) {
        return s.heads.qkv_width() + s.heads.query_width() + 2 * s.hidden_size + 2 * s.intermediate_size;
    }

    Shared(const Stack& s, const StackStep& step, int64_t layer) {
        projected = step.scratch + layer * step.num_rows * row_elements(s);
        attended = projected + step.num_rows * s.heads.qkv_width();
        attention_change = attended + step.num_rows * s.heads.query_width();
        gate_up = attention_change + step.num_rows * s.hidden_size;
        mlp_change = gate_up + step.num_rows * 2 * s.intermediate_size;
    }
};

// What each thread computes for itself, the same as the others.
struct Own {
    Buffer<bf16> residual;   // [num_rows, hidden_size]
    Buffer<bf16> hidden;     // [num_rows, hidden_size]
    Buffer<bf16> projected;  // [num_rows, qkv width], heads turned
    Buffer<bf16> attended;   // [num_rows, num_heads * head_dim]
    Buffer<bf16> gated;      // [num_rows, intermediate_size]

    void prepare(const Stack& s, const StackStep& step) {
        residual.assign(step.residual, step.residual + step.num_rows * s.hidden_size);
        hidden.resize(step.num_rows * s.hidden_size);
        projected.resize(step.num_rows * s.heads.qkv_width());
        attended.resize(step.num_rows * s.heads.query_width());
        gated.resize(step.num_rows * s.intermediate_size);
    }
};

const Team kAlone{nullptr, 0, 1};

// One thread's way through the step. What is done already it passes by.
struct ShortRun {
    const Stack& stack;
    const StackStep& step;
    AttentionWork& work;
    PieceQueue* queues;  // [num_layers, kSharedOperations, num_threads]
    int num_threads;
    int rank;
    Own& own;

    void run() const {
        const bf16* change = nullptr;
        for (int64_t i = 0; i < stack.num_layers; i++) {
            const Layer& layer = stack.layers[i];
            const Shared shared(stack, step, i);
            PieceQueue* layer_queues = queues + i * kSharedOperations * num_threads;
            normalise(change, layer.attention_norm);
            multiply(layer_queues, own.hidden, layer.qkv, shared.projected);
            attention(layer_queues + num_threads, i, layer, shared);
            normalise(shared.attention_change, layer.mlp_norm);
            multiply(layer_queues + 3 * num_threads, own.hidden, layer.gate_up, shared.gate_up);
            silu_mul(kAlone, shared.gate_up, step.num_rows, stack.intermediate_size, own.gated.data());
            multiply(layer_queues + 4 * num_threads, own.gated, layer.down, shared.mlp_change);
            change = shared.mlp_change;
        }
        normalise(change, stack.final_norm);
        if (rank == 0) std::copy(own.hidden.begin(), own.hidden.end(), step.hidden);
    }

    void normalise(const bf16* change, const bf16* weight) const {
        add_rms_norm(
            kAlone, change, own.residual.data(), weight, stack.eps, step.num_rows, stack.hidden_size,
            own.hidden.data());
    }

    void multiply(PieceQueue* of, const Buffer<bf16>& x, const Weight& weight, bf16* y) const {
        linear_by_pieces(Pieces(of, num_threads, num_linear_pieces(weight)), rank, x.data(), step.num_rows, weight, y);
    }

    void attention(PieceQueue* of, int64_t index, const Layer& layer, const Shared& shared) const {
        const Heads& heads = stack.heads;
        bf16* keys = step.kv_cache + 2 * index * step.cache_stride;
        bf16* values = keys + step.cache_stride;
        AttentionCall call{
            work, own.projected.data(), heads.qkv_width(), keys, values, shared.attended, work.partials(index),
            stack.scale};
        const Pieces pieces(of, num_threads, work.num_items());
        if (!pieces.done()) {
            std::copy_n(shared.projected, own.projected.size(), own.projected.begin());
            const ProjectedHeads projected{
                own.projected.data(), step.num_rows, heads.num_heads, heads.num_kv_heads, heads.head_dim,
                layer.qk_norm, stack.eps, keys, values, step.slots};
            rotate_and_store(kAlone, projected, step.angles);
            pieces.work(rank, [&](int64_t item) { call.attend_alone(item); });
        }
        std::copy_n(shared.attended, own.attended.size(), own.attended.begin());
        call.output = own.attended.data();
        call.merge(kAlone);
        multiply(of + num_threads, own.attended, layer.attention_output, shared.attention_change);
    }
};

}  // namespace

int64_t short_scratch(const Stack& stack, int64_t num_rows) {
    return stack.num_layers * num_rows * Shared::row_elements(stack);
}

void run_short(const Stack& stack, const StackStep& step) {
    const int num_threads = omp_get_max_threads();
    AttentionWork work(step.shape, stack.heads, num_threads, stack.num_layers);
    std::vector<PieceQueue> queues(stack.num_layers * kSharedOperations * num_threads);
#pragma omp parallel
    {
        static thread_local Own own;
        own.prepare(stack, step);
        ShortRun{stack, step, work, queues.data(), num_threads, omp_get_thread_num(), own}.run();
    }
}

}  // namespace tandem
