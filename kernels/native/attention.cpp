// Online softmax (Milakov and Gimelshein 2018) over tiles of kPanel keys: the query heads that share a key head, times
// the rows of a tile, are the rows of both products. Long decode contexts are cut into spans of keys that several threads
// work on, and put together by their maxima and sums (Dao et al. 2023, "Flash-Decoding").
#include "attention.h"

#include <array>
#include <cmath>
#include <utility>

#include "api.h"
#include "tile.h"

namespace tandem {
namespace {

constexpr int64_t kVectorsOfItem = 96;    // query rows times heads: keys are packed once for so many
constexpr int64_t kFewRows = 8;           // at most so many are worth no sharing of packed keys
constexpr int64_t kLeastSplitKeys = 128;  // fewer are not worth a part of their own
constexpr int64_t kItemsPerThread = 4;    // so that no thread waits long for another
constexpr float kNoMaximum = -1e30f;      // finite: a row whose keys so far are all hidden stays a number

}  // namespace

// What one thread keeps for an item. Vectors (query rows times heads) are padded to `padded` dimensions.
struct Scratch {
    int64_t padded;
    Buffer<Factor> query;      // [vectors, padded]
    Buffer<float> sums;        // [vectors, padded]: values weighted so far
    Buffer<float> maxima;      // [vectors]
    Buffer<float> weights;     // [vectors]: sum of the weights so far
    Buffer<uint32_t> keys;     // a panel: kPanel keys as columns
    Buffer<uint32_t> values;   // [kPanel / 2, padded]: pairs of keys, dimensions as columns
    alignas(64) Factor likely[kTileRows * kPanel];

    void prepare(int64_t num_vectors, int64_t head_dim) {
        padded = round_up(head_dim, kPanel);
        query.assign(num_vectors * padded, 0);
        sums.assign(num_vectors * padded, 0.0f);
        maxima.assign(num_vectors, kNoMaximum);
        weights.assign(num_vectors, 0.0f);
        keys.resize(column_words(head_dim, kPanel));
        values.resize(kPanel / 2 * padded);
    }
};

// Where the keys and values of a tile lie, from the item's first head on; null past the end.
struct TileRows {
    const bf16* keys[kPanel];
    const bf16* values[kPanel];
    int64_t width;  // elements of all the item's heads

    void fetch() const {
        for (const auto rows : {keys, values}) {
            for (int i = 0; i < kPanel && rows[i]; i++) fetch_lines(rows[i], width);
        }
    }
};

namespace {

// Pairs keys 2p and 2p + 1, each `offset` after its pointer (null: zeros), dimension by dimension.
void pack_values(const bf16* const* rows, int64_t offset, int64_t head_dim, int64_t padded, uint32_t* values) {
    for (int pair = 0; pair < kPanel / 2; pair++) {
        const bf16 *even = rows[2 * pair], *odd = rows[2 * pair + 1];
        for (int64_t start = 0; start < padded; start += 2 * kLanes) {
            const Halves in_row = first_halves(head_dim - start);
            const Words a = even ? load_words(even + offset + start, in_row) : Words{};
            const Words b = odd ? load_words(odd + offset + start, in_row) : Words{};
            store_interleaved(values + pair * padded + start, a, b);
        }
    }
}

// The keys of a tile that a row sees, as bits.
uint64_t seen_keys(int64_t position, int64_t first_key, int64_t window) {
    const uint64_t up_to_row = first_bits(position + 1 - first_key, kPanel);
    return window ? up_to_row & ~first_bits(position + 1 - window - first_key, kPanel) : up_to_row;
}

// Turns kRows vectors' scores into weights relative to their new maxima. Returns by what the sums so far shrink, a lane
// a row.
template <int kRows>
inline Vector weigh(
    Scratch& scratch, int64_t vector, const uint64_t* seen, float scale, Vector (&scores)[kRows][kPanelVectors]) {
    alignas(64) float falls[kLanes] = {}, totals[kLanes];
    for (int r = 0; r < kRows; r++) {
        Vector highest = spread(kNoMaximum);
        for (int v = 0; v < kPanelVectors; v++) {
            scores[r][v] = keep(scores[r][v] * spread(scale), seen[r] >> v * kLanes, spread(-INFINITY));
            highest = larger(highest, scores[r][v]);
        }
        float& maximum = scratch.maxima[vector + r];
        const float before = maximum;
        maximum = std::max(before, largest_of(highest));
        falls[r] = before - maximum;
        Vector total{};
        for (int v = 0; v < kPanelVectors; v++) {
            const Vector likely = exp_nonpositive(scores[r][v] - spread(maximum));
            total += likely;
            store(&scratch.likely[r * kPanel + v * kLanes], likely);
        }
        totals[r] = sum_of(total);
    }
    const Vector decay = exp_nonpositive(load(falls));
    const Lanes rows = first_lanes(kRows);
    float* weights = &scratch.weights[vector];
    store(weights, load(weights, rows) * decay + load(totals, rows), rows);
    return decay;
}

// Scores kRows vectors against the tile's keys.
template <int kRows>
inline void score(
    const Scratch& scratch, int64_t vector, int64_t head_dim, Vector (&scores)[kRows][kPanelVectors]) {
    const Factor* query = &scratch.query[vector * scratch.padded];
    for (int first = 0; first < kPanelVectors; first += kTileVectors) {
        Vector sums[kRows][kTileVectors] = {};
        const uint32_t* keys = scratch.keys.data() + column_words(head_dim, first * kLanes);
        multiply<kRows>(query, scratch.padded, keys, kTileColumns, ceil_div(head_dim, 2), sums);
        for (int r = 0; r < kRows; r++) {
            for (int v = 0; v < kTileVectors; v++) scores[r][first + v] = sums[r][v];
        }
    }
}

// Scores kRows vectors against the tile and adds its values to their sums.
template <int kRows>
void attend_tile(Scratch& scratch, int64_t vector, const uint64_t* seen, int64_t head_dim, float scale) {
    const int64_t padded = scratch.padded;
    Vector scores[kRows][kPanelVectors];
    score<kRows>(scratch, vector, head_dim, scores);
    alignas(64) float decay[kLanes];
    store(decay, weigh<kRows>(scratch, vector, seen, scale, scores));
    for (int64_t start = 0; start < head_dim; start += kTileColumns) {
        Vector sums[kRows][kTileVectors];
        float* to = &scratch.sums[vector * padded + start];
        for (int r = 0; r < kRows; r++) {
            for (int v = 0; v < kTileVectors; v++) sums[r][v] = load(to + r * padded + v * kLanes) * spread(decay[r]);
        }
        multiply<kRows>(scratch.likely, kPanel, scratch.values.data() + start, padded, kPanel / 2, sums);
        for (int r = 0; r < kRows; r++) {
            for (int v = 0; v < kTileVectors; v++) store(to + r * padded + v * kLanes, sums[r][v]);
        }
    }
}

using AttendTile = void (*)(Scratch&, int64_t, const uint64_t*, int64_t, float);

template <int... kLess>
constexpr std::array<AttendTile, kTileRows> attend_tiles(std::integer_sequence<int, kLess...>) {
    return {attend_tile<kLess + 1>...};
}

constexpr auto kAttendTile = attend_tiles(std::make_integer_sequence<int, kTileRows>{});  // of one row and more

}  // namespace

AttentionWork::AttentionWork(const StepShape& step, const Heads& heads, int num_threads, int64_t num_partials_kept)
    : step_(step), heads_(heads), num_splits_(num_threads > 1 ? ceil_div(kItemsPerThread * num_threads, step.num_seqs) : 1) {
    for (int64_t sequence = 0; sequence < step.num_seqs; sequence++) {
        const int64_t num_rows = step.query_start[sequence + 1] - step.query_start[sequence];
        if (num_rows > kFewRows) add_chunk(sequence);
        else add_few_rows(sequence);
    }
    partial_floats_ = most_rows_ * heads.num_heads * (round_up(heads.head_dim, kPanel) + 2);
    partials_ = std::make_unique_for_overwrite<float[]>(num_partials_kept * num_partials_ * partial_floats_);
}

AttentionItem AttentionWork::all_keys(int64_t sequence, int64_t row, int64_t num_rows) const {
    const int64_t first_row = step_.query_start[sequence] + row;
    const int64_t first_position = step_.position(sequence, first_row);
    const int64_t first_key = step_.window ? std::max<int64_t>(0, first_position + 1 - step_.window) : 0;
    const int64_t end_key = step_.position(sequence, first_row + num_rows - 1) + 1;
    return {sequence, 0, heads_.num_kv_heads, first_row, num_rows, first_key, end_key, -1};
}

// The last rows first: they have the most keys.
void AttentionWork::add_chunk(int64_t sequence) {
    const int64_t num_rows = step_.query_start[sequence + 1] - step_.query_start[sequence];
    const int64_t rows_of_item = std::max<int64_t>(1, kVectorsOfItem / heads_.group());
    for (int64_t row = round_up(num_rows, rows_of_item) - rows_of_item; row >= 0; row -= rows_of_item) {
        AttentionItem item = all_keys(sequence, row, std::min(rows_of_item, num_rows - row));
        item.num_heads = 1;
        for (; item.first_head < heads_.num_kv_heads; item.first_head++) items_.push_back(item);
    }
}

void AttentionWork::add_few_rows(int64_t sequence) {
    AttentionItem item = all_keys(sequence, 0, step_.query_start[sequence + 1] - step_.query_start[sequence]);
    const int64_t first_key = item.first_key, end_key = item.end_key, num_keys = end_key - first_key;
    const int64_t num_splits = std::min(num_splits_, std::max<int64_t>(1, num_keys / kLeastSplitKeys));
    const int64_t span = round_up(ceil_div(num_keys, num_splits), kPanel);
    if (span >= num_keys) return items_.push_back(item);
    merges_.push_back({item, num_partials_, ceil_div(num_keys, span)});
    most_rows_ = std::max(most_rows_, item.num_rows);
    for (item.first_key = first_key; item.first_key < end_key; item.first_key += span) {
        item.end_key = std::min(item.first_key + span, end_key);
        item.partial = num_partials_++;
        items_.push_back(item);
    }
}

void AttentionCall::attend(std::atomic<int64_t>& taken) const {
    const int64_t num_items = static_cast<int64_t>(work.items_.size());
    int64_t i = taken.fetch_add(1);
    while (i < num_items) {
        const int64_t next = taken.fetch_add(1);  // known early: its first keys come while this one is computed
        attend_item(work.items_[i], next < num_items ? &work.items_[next] : nullptr);
        i = next;
    }
}

void AttentionCall::attend_item(const AttentionItem& item, const AttentionItem* next) const {
    static thread_local Scratch scratch;
    const int64_t head_dim = work.heads_.head_dim;
    scratch.prepare(num_vectors(item), head_dim);
    gather_query(item, scratch);
    TileRows tile = tile_rows(item, item.first_key), following;
    for (int64_t first_key = item.first_key; first_key < item.end_key; first_key += kPanel) {
        const bool last = first_key + kPanel >= item.end_key;
        if (!last) following = tile_rows(item, first_key + kPanel);
        else if (next) following = tile_rows(*next, next->first_key);
        if (!last || next) following.fetch();
        for (int64_t head = 0; head < item.num_heads; head++) {
            pack_panel(tile.keys, head * head_dim, head_dim, 0, scratch.keys.data());
            pack_values(tile.values, head * head_dim, head_dim, scratch.padded, scratch.values.data());
            attend_keys(item, head, first_key, scratch);
        }
        tile = following;
    }
    if (item.partial < 0) finish(item, scratch);
    else leave_partial(item, scratch);
}

int64_t AttentionCall::num_vectors(const AttentionItem& item) const {
    return item.num_heads * item.num_rows * work.heads_.group();
}

QueryVector AttentionCall::vector_of(const AttentionItem& item, int64_t vector) const {
    const int64_t group = work.heads_.group(), of_head = item.num_rows * group;
    const int64_t kv_head = item.first_head + vector / of_head, row = vector % of_head / group;
    return {item.first_row + row, kv_head * group + vector % group};
}

void AttentionCall::gather_query(const AttentionItem& item, Scratch& scratch) const {
    const int64_t head_dim = work.heads_.head_dim;
    for (int64_t i = 0; i < num_vectors(item); i++) {
        const QueryVector vector = vector_of(item, i);
        const bf16* from = query + vector.row * query_stride + vector.head * head_dim;
        as_factors(from, head_dim, &scratch.query[i * scratch.padded]);
    }
}

TileRows AttentionCall::tile_rows(const AttentionItem& item, int64_t first_key) const {
    const StepShape& step = work.step_;
    const int64_t* table = step.block_tables + item.sequence * step.table_stride;
    const int64_t row_width = work.heads_.num_kv_heads * work.heads_.head_dim;
    const int64_t head_offset = item.first_head * work.heads_.head_dim;
    const int64_t end = std::min(item.end_key, first_key + kPanel);
    TileRows tile;
    tile.width = item.num_heads * work.heads_.head_dim;
    int64_t block = first_key / step.block_size, in_block = first_key % step.block_size, i = 0;
    for (int64_t key = first_key; key < end; block++, in_block = 0) {
        int64_t offset = (table[block] * step.block_size + in_block) * row_width + head_offset;
        for (; in_block < step.block_size && key < end; in_block++, key++, i++, offset += row_width) {
            tile.keys[i] = keys + offset;
            tile.values[i] = values + offset;
        }
    }
    for (; i < kPanel; i++) tile.keys[i] = tile.values[i] = nullptr;
    return tile;
}

void AttentionCall::attend_keys(const AttentionItem& item, int64_t head, int64_t first_key, Scratch& scratch) const {
    const int64_t group = work.heads_.group(), of_head = item.num_rows * group;
    const uint64_t used = first_bits(item.end_key - first_key, kPanel);
    for (int64_t vector = 0; vector < of_head; vector += kTileRows) {
        const int64_t count = std::min<int64_t>(kTileRows, of_head - vector);
        uint64_t seen[kTileRows], any = 0;
        for (int64_t r = 0; r < count; r++) {
            const int64_t position = work.step_.position(item.sequence, item.first_row + (vector + r) / group);
            seen[r] = used & seen_keys(position, first_key, work.step_.window);
            any |= seen[r];
        }
        if (any) kAttendTile[count - 1](scratch, head * of_head + vector, seen, work.heads_.head_dim, scale);
    }
}

void AttentionCall::finish(const AttentionItem& item, const Scratch& scratch) const {
    const int64_t head_dim = work.heads_.head_dim;
    for (int64_t vector = 0; vector < num_vectors(item); vector++) {
        const Vector share = spread(1.0f / scratch.weights[vector]);
        bf16* to = output_of(item, vector);
        for (int64_t d = 0; d < head_dim; d += kLanes) {
            store(to + d, load(&scratch.sums[vector * scratch.padded + d]) * share, first_lanes(head_dim - d));
        }
    }
}

void AttentionCall::leave_partial(const AttentionItem& item, const Scratch& scratch) const {
    float* to = partials + item.partial * work.partial_floats_;
    for (int64_t vector = 0; vector < num_vectors(item); vector++, to += scratch.padded + 2) {
        to[0] = scratch.maxima[vector];
        to[1] = scratch.weights[vector];
        std::memcpy(to + 2, &scratch.sums[vector * scratch.padded], scratch.padded * sizeof(float));
    }
}

bf16* AttentionCall::output_of(const AttentionItem& item, int64_t vector) const {
    const QueryVector of = vector_of(item, vector);
    return output + (of.row * work.heads_.num_heads + of.head) * work.heads_.head_dim;
}

void AttentionCall::merge(const Team& team) const {
    const Range mine = team.share(static_cast<int64_t>(work.merges_.size()), 1);
    for (int64_t m = mine.first; m < mine.end; m++) {
        const AttentionMerge& merge = work.merges_[m];
        for (int64_t vector = 0; vector < num_vectors(merge.rows); vector++) {
            merge_vector(merge, vector);
        }
    }
}

void AttentionCall::merge_vector(const AttentionMerge& merge, int64_t vector) const {
    const int64_t head_dim = work.heads_.head_dim, stride = round_up(head_dim, kPanel) + 2;
    const float* parts = partials + merge.first * work.partial_floats_ + vector * stride;
    const auto part = [&](int64_t i) { return parts + i * work.partial_floats_; };
    float maximum = kNoMaximum, weight = 0.0f;
    for (int64_t i = 0; i < merge.count; i++) maximum = std::max(maximum, part(i)[0]);
    for (int64_t i = 0; i < merge.count; i++) weight += part(i)[1] * std::exp(part(i)[0] - maximum);
    bf16* to = output_of(merge.rows, vector);
    for (int64_t d = 0; d < head_dim; d += kLanes) {
        Vector sum{};
        for (int64_t i = 0; i < merge.count; i++) {
            const Vector share = spread(std::exp(part(i)[0] - maximum) / weight);
            sum = fused(load(part(i) + 2 + d), share, sum);
        }
        store(to + d, sum, first_lanes(head_dim - d));
    }
}

}  // namespace tandem

TANDEM_API void tandem_attention(
    const tandem::StepShape* step, const tandem::Heads* heads, const void* query, int64_t query_stride,
    const void* keys, const void* values, void* output, float scale) {
    using namespace tandem;
    AttentionWork work(*step, *heads, omp_get_max_threads());
    std::atomic<int64_t> taken{0};
    const AttentionCall call{
        work, static_cast<const bf16*>(query), query_stride, static_cast<const bf16*>(keys),
        static_cast<const bf16*>(values), static_cast<bf16*>(output), work.partials(0), scale};
    Barrier barrier;
#pragma omp parallel
    {
        const Team team{&barrier};
        call.attend(taken);
        if (call.splits()) {
            team.wait();
            call.merge(team);
        }
    }
}
