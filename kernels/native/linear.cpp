// Two forms. For few rows the weights stream through once and every output is a sum along its weight row: nothing is
// rearranged, and what comes next is asked for while what is there is multiplied. For many rows a panel of weight rows is
// packed once and multiplied with all of the thread's rows.
#include "linear.h"

#include "api.h"
#include "pieces.h"
#include "quantised.h"
#include "tile.h"

namespace tandem {
namespace {

constexpr int64_t kLine = 32;          // elements of a cache line
constexpr int64_t kAheadBytes = 8192;  // how far ahead of the product with one row weights are asked for
constexpr int64_t kBlock = 8;          // outputs whose weights stay in the first cache while all rows pass
constexpr int64_t kPieceBytes = 96 << 10;  // of weights: a few microseconds

// Asks for all lines of `bytes` bytes.
inline void prefetch(const char* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(from + i, _MM_HINT_T0);
}

template <typename Out>
struct Product {
    const Factor* x;  // [num_rows, in_width]
    int64_t num_rows;
    const Weight& weight;
    Out* y;

    Vector bias(int64_t first_output, Lanes lanes) const {
        return weight.bias ? load(weight.bias + first_output, lanes) : Vector{};
    }
};

// kRows x kOutputs sums, kRows * kOutputs <= kLanes, from `first_row` and `first_output` on.
template <int kRows, int kOutputs, typename Out>
inline void dot_tile(const Product<Out>& p, int64_t first_row, int64_t first_output) {
    const int64_t width = p.weight.in_width;
    const Factor* x = p.x + first_row * width;
    const bf16* w = p.weight.values + first_output * width;
    Vector sums[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) sums[i] = Vector{};
    auto add = [&](int64_t k, auto operand) __attribute__((always_inline)) {
        Operand rows[kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; r++) rows[r] = operand(x + r * width + k);
#pragma GCC unroll 16
        for (int o = 0; o < kOutputs; o++) {
            const Operand column = operand(w + o * width + k);
#pragma GCC unroll 4
            for (int r = 0; r < kRows; r++) {
                sums[r * kOutputs + o] = add_products(sums[r * kOutputs + o], rows[r], column);
            }
        }
    };
    int64_t k = 0;
    for (; k + kOperand <= width; k += kOperand) {
        add(k, [](const auto* from) { return load_operand(from); });
    }
    for (; k < width; k += kOperand) {
        add(k, [count = width - k](const auto* from) { return load_operand(from, count); });
    }
    const Vector totals = sum_lanes(sums);
    const Vector bias = p.bias(first_output, first_lanes(kOutputs));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
        Out* to = p.y + (first_row + r) * p.weight.out_width + first_output;
        store(to, from_lane(totals, r * kOutputs) + bias, first_lanes(kOutputs));
    }
}

// All rows for `outputs`, kOutputs at a time, then one at a time.
template <int kRows, int kOutputs, typename Out>
inline void dot_rows(const Product<Out>& p, int64_t first_row, int64_t first_output, int64_t end_output) {
    int64_t output = first_output;
    for (; output + kOutputs <= end_output; output += kOutputs) dot_tile<kRows, kOutputs>(p, first_row, output);
    for (; output < end_output; output++) dot_tile<kRows, 1>(p, first_row, output);
}

// One row times one output. The weights are read from end to end, as one stream, which is also what the processor's own
// prefetcher follows best.
inline Vector stream(const Factor* x, const bf16* w, int64_t width) {
    constexpr int kParts = kLine / kOperand;
    Vector sums[kParts] = {};
    int64_t k = 0;
    for (; k + kLine <= width; k += kLine) {
        _mm_prefetch(reinterpret_cast<const char*>(w + k) + kAheadBytes, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int part = 0; part < kParts; part++) {
            const int64_t at = k + part * kOperand;
            sums[part] = add_products(sums[part], load_operand(x + at), load_operand(w + at));
        }
    }
    for (; k < width; k += kOperand) {
        sums[0] = add_products(sums[0], load_operand(x + k, width - k), load_operand(w + k, width - k));
    }
    Vector sum = sums[0];
#pragma GCC unroll 4
    for (int part = 1; part < kParts; part++) sum += sums[part];
    return sum;
}

template <typename Out>
void stream_outputs(const Product<Out>& p, Range outputs) {
    const int64_t width = p.weight.in_width;
    for (int64_t first = outputs.first; first < outputs.end; first += kLanes) {
        const Lanes lanes = first_lanes(outputs.end - first);
        const int64_t count = std::min<int64_t>(kLanes, outputs.end - first);
        Vector sums[kLanes] = {};
        for (int64_t o = 0; o < count; o++) sums[o] = stream(p.x, p.weight.values + (first + o) * width, width);
        store(p.y + first, sum_lanes(sums) + p.bias(first, lanes), lanes);
    }
}

// Each group of rows asks for its part of the next block: memory is never idle while the block that is there is multiplied.
template <typename Out>
void dot_outputs(const Product<Out>& p, Range outputs) {
    if (p.num_rows == 1) return stream_outputs(p, outputs);
    const int64_t block_bytes = kBlock * p.weight.in_width * sizeof(bf16);
    const int64_t part_bytes = ceil_div(block_bytes, ceil_div(p.num_rows, 4));
    for (int64_t first = outputs.first; first < outputs.end; first += kBlock) {
        const int64_t end = std::min(first + kBlock, outputs.end);
        const char* next = reinterpret_cast<const char*>(p.weight.values + end * p.weight.in_width);
        const auto prefetch_part = [&] {
            if (end < outputs.end) prefetch(next, part_bytes);
            next += part_bytes;
        };
        int64_t row = 0;
        for (; row + 4 <= p.num_rows; row += 4) {
            prefetch_part();
            dot_rows<4, kLanes / 4>(p, row, first, end);
        }
        if (row < p.num_rows) prefetch_part();
        switch (p.num_rows - row) {
            case 3: dot_rows<3, kLanes / 4>(p, row, first, end); break;
            case 2: dot_rows<2, kLanes / 2>(p, row, first, end); break;
            case 1: dot_rows<1, kLanes / 2>(p, row, first, end); break;
        }
    }
}

// kRows rows times kTileColumns of the panel's columns, of which the first is `first_output`.
template <int kRows, typename Out>
inline void panel_tile(const Product<Out>& p, const uint32_t* columns, int64_t row, int64_t first_output) {
    Vector sums[kRows][kTileVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; v++) {
        const int64_t output = first_output + v * kLanes;
        const Vector bias = p.bias(output, first_lanes(p.weight.out_width - output));
#pragma GCC unroll 6
        for (int r = 0; r < kRows; r++) sums[r][v] = bias;
    }
    const int64_t width = p.weight.in_width;
    multiply<kRows>(p.x + row * width, width, columns, kTileColumns, width / 2, sums);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) {
        Out* to = p.y + (row + r) * p.weight.out_width + first_output;
#pragma GCC unroll 4
        for (int v = 0; v < kTileVectors; v++) {
            store(to + v * kLanes, sums[r][v], first_lanes(p.weight.out_width - first_output - v * kLanes));
        }
    }
}

template <int kRows, typename Out>
inline void panel_columns(const Product<Out>& p, const uint32_t* panel, int64_t row, int64_t first_output) {
    for (int64_t column = 0; column < kPanel; column += kTileColumns) {
        panel_tile<kRows>(p, panel + column_words(p.weight.in_width, column), row, first_output + column);
    }
}

template <typename Out>
void panel_rows(const Product<Out>& p) {
    static thread_local Buffer<uint32_t> panel;
    panel.resize(column_words(p.weight.in_width, kPanel));
    for (int64_t output = 0; output < p.weight.out_width; output += kPanel) {
        const bf16* columns[kPanel];
        for (int64_t i = 0; i < kPanel; i++) {
            columns[i] = output + i < p.weight.out_width ? p.weight.values + (output + i) * p.weight.in_width : nullptr;
        }
        pack_panel(columns, 0, p.weight.in_width, kLanes * p.weight.in_width, panel.data());
        int64_t row = 0;
        for (; row + kTileRows <= p.num_rows; row += kTileRows) panel_columns<kTileRows>(p, panel.data(), row, output);
        switch (p.num_rows - row) {
            case 5: panel_columns<5>(p, panel.data(), row, output); break;
            case 4: panel_columns<4>(p, panel.data(), row, output); break;
            case 3: panel_columns<3>(p, panel.data(), row, output); break;
            case 2: panel_columns<2>(p, panel.data(), row, output); break;
            case 1: panel_columns<1>(p, panel.data(), row, output); break;
        }
    }
}

}  // namespace

template <typename Out>
void linear(const Team& team, const bf16* x, int64_t num_rows, const Weight& weight, Out* y) {
    if (weight.format != Format::kBfloat16) return quantised_linear(team, x, num_rows, weight, y);
    static thread_local Buffer<Factor> factors;
    if (num_rows < kPackedRows || weight.in_width % 2) {
        const Product<Out> product{as_factors(x, num_rows * weight.in_width, factors), num_rows, weight, y};
        return dot_outputs(product, team.share(weight.out_width, 16));
    }
    const Range mine = team.share(num_rows, kTileRows);
    if (mine.first == mine.end) return;
    const int64_t count = mine.end - mine.first;
    const bf16* rows = x + mine.first * weight.in_width;
    Out* to = y + mine.first * weight.out_width;
    panel_rows(Product<Out>{as_factors(rows, count * weight.in_width, factors), count, weight, to});
}

int64_t num_linear_pieces(const Weight& weight) {
    const int64_t bits = weight.format == Format::kBfloat16 ? 16 : weight.format == Format::kInt8 ? 8 : 4;
    const int64_t bytes = weight.out_width * weight.in_width * bits / 8;
    return std::clamp<int64_t>(bytes / kPieceBytes, 1, ceil_div(weight.out_width, 32));
}

template <typename Out>
void linear_by_pieces(
    const Pieces& pieces, int rank, const bf16* x, int64_t num_rows, const Weight& weight, Out* y) {
    const int size = static_cast<int>(pieces.count());
    pieces.work(rank, [&](int64_t i) { linear(Team{nullptr, static_cast<int>(i), size}, x, num_rows, weight, y); });
}

template void linear_by_pieces<bf16>(const Pieces&, int, const bf16*, int64_t, const Weight&, bf16*);
template void linear_by_pieces<float>(const Pieces&, int, const bf16*, int64_t, const Weight&, float*);
template void linear<bf16>(const Team&, const bf16*, int64_t, const Weight&, bf16*);
template void linear<float>(const Team&, const bf16*, int64_t, const Weight&, float*);

namespace {

// As `linear`, in a region of its own.
template <typename Out>
void multiply(const bf16* x, int64_t num_rows, const Weight& weight, Out* y) {
    const int num_threads = omp_get_max_threads();
    if (!in_pieces(num_rows, num_threads)) {
#pragma omp parallel
        linear(Team{}, x, num_rows, weight, y);
        return;
    }
    std::vector<PieceQueue> queues(num_threads);
    const Pieces pieces(queues.data(), num_threads, num_linear_pieces(weight));
#pragma omp parallel
    linear_by_pieces(pieces, omp_get_thread_num(), x, num_rows, weight, y);
}

}  // namespace
}  // namespace tandem

TANDEM_API void tandem_linear(
    const void* x, int64_t num_rows, const tandem::Weight* weight, void* y, int32_t y_is_float32) {
    using namespace tandem;
    const bf16* rows = static_cast<const bf16*>(x);
    if (y_is_float32) multiply(rows, num_rows, *weight, static_cast<float*>(y));
    else multiply(rows, num_rows, *weight, static_cast<bf16*>(y));
}
