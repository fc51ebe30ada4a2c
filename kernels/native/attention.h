// Attention over the paged cache, for prefill chunks and decode rows alike; semantics as kernels/paged_attention.py.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "team.h"
#include "vector.h"

namespace tandem {

struct Heads {
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;

    int64_t group() const { return num_heads / num_kv_heads; }
    int64_t query_width() const { return num_heads * head_dim; }
    int64_t qkv_width() const { return query_width() + 2 * num_kv_heads * head_dim; }
};

// What a step's layers have in common. Rows query_start[i] .. query_start[i + 1] are sequence i's: the last ones of its
// context, or where `positions` says, rising.
struct StepShape {
    const int64_t* block_tables;  // [num_seqs, table_stride]
    const int64_t* query_start;   // [num_seqs + 1]
    const int64_t* context_lens;  // [num_seqs]
    int64_t num_seqs;
    int64_t table_stride;
    int64_t block_size;
    int64_t window;            // keys that a row sees, its own included; 0: all before it
    const int64_t* positions;  // [num_rows]; null: the last ones

    int64_t position(int64_t sequence, int64_t row) const {
        return positions ? positions[row] : context_lens[sequence] - query_start[sequence + 1] + row;
    }
};

// An item's query rows times heads, in the order: key head, row, query head.
struct QueryVector {
    int64_t row;   // of the batch
    int64_t head;  // of the query
};

struct Scratch;   // a thread's
struct TileRows;  // what it reads next

// One thread's unit of work: query rows of one or all key heads, over a span of keys. A chunk's heads go apart, for there
// are enough rows to share a key; a decode row's stay together, so that the cache is read from end to end.
struct AttentionItem {
    int64_t sequence;
    int64_t first_head;  // key heads
    int64_t num_heads;
    int64_t first_row;  // of the batch
    int64_t num_rows;
    int64_t first_key;
    int64_t end_key;
    int64_t partial;    // where it leaves its part when the keys are split; -1: it has them all
};

// Parts `first` .. `first + count` are the same rows' over different keys.
struct AttentionMerge {
    AttentionItem rows;
    int64_t first;
    int64_t count;
};

// The step's work, cut once and done in every layer.
class AttentionWork {
   public:
    // `num_partials_kept`: layers whose partials are kept apart.
    AttentionWork(const StepShape& step, const Heads& heads, int num_threads, int64_t num_partials_kept = 1);

    int64_t num_items() const { return static_cast<int64_t>(items_.size()); }
    float* partials(int64_t kept) { return partials_.get() + kept * num_partials_ * partial_floats_; }

   private:
    friend struct AttentionCall;
    void add_chunk(int64_t sequence);
    void add_few_rows(int64_t sequence);
    AttentionItem all_keys(int64_t sequence, int64_t row, int64_t num_rows) const;

    StepShape step_;
    Heads heads_;
    int64_t num_splits_;  // wanted of each sequence with few rows
    std::vector<AttentionItem> items_;
    std::vector<AttentionMerge> merges_;
    int64_t most_rows_ = 0;  // of an item whose keys are split
    int64_t num_partials_ = 0;
    int64_t partial_floats_ = 0;
    std::unique_ptr<float[]> partials_;
};

// One layer's. `query`: rows `query_stride` elements apart, heads one after another; `keys`, `values`: the layer's
// caches; `output`: [num_tokens, num_heads * head_dim]; `partials`: the work's.
struct AttentionCall {
    const AttentionWork& work;
    const bf16* query;
    int64_t query_stride;
    const bf16* keys;
    const bf16* values;
    bf16* output;
    float* partials;
    float scale;

    // Called by the whole team; `taken` is 0 before. What it leaves split is put together by `merge`, after a wait.
    void attend(std::atomic<int64_t>& taken) const;
    // One item; twice or at once by several threads is the same.
    void attend_alone(int64_t item) const { attend_item(work.items_[item], nullptr); }
    bool splits() const { return !work.merges_.empty(); }
    void merge(const Team& team) const;

   private:
    void attend_item(const AttentionItem& item, const AttentionItem* next) const;
    void gather_query(const AttentionItem& item, Scratch& scratch) const;
    TileRows tile_rows(const AttentionItem& item, int64_t first_key) const;
    void attend_keys(const AttentionItem& item, int64_t head, int64_t first_key, Scratch& scratch) const;
    void finish(const AttentionItem& item, const Scratch& scratch) const;
    void leave_partial(const AttentionItem& item, const Scratch& scratch) const;
    void merge_vector(const AttentionMerge& merge, int64_t vector) const;
    int64_t num_vectors(const AttentionItem& item) const;
    QueryVector vector_of(const AttentionItem& item, int64_t vector) const;
    bf16* output_of(const AttentionItem& item, int64_t vector) const;
};

}  // namespace tandem
