// Two forms. For few rows the weights stream through once and every output is a sum along its weight row: nothing is
// rearranged. For many rows a panel of weight rows is packed once and multiplied with all of the thread's rows.
#include "linear.h"

#include "api.h"
#include "quantised.h"
#include "tile.h"

namespace tandem {
namespace {

constexpr int64_t kLine = 32;             // elements of a cache line
constexpr int64_t kPrefetchBytes = 4096;  // how far ahead of the multiplication weights are asked for

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
    for (; k + kLine <= width; k += kLine) {
#pragma GCC unroll 16
        for (int o = 0; o < kOutputs; o++) {
            _mm_prefetch(reinterpret_cast<const char*>(w + o * width + k) + kPrefetchBytes, _MM_HINT_T0);
        }
#pragma GCC unroll 4
        for (int part = 0; part < kLine; part += kOperand) {
            add(k + part, [](const auto* from) { return load_operand(from); });
        }
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

template <typename Out>
void dot_outputs(const Product<Out>& p, Range outputs) {
    if (p.num_rows == 1) return dot_rows<1, kLanes>(p, 0, outputs.first, outputs.end);
    for (int64_t first = outputs.first; first < outputs.end; first += 8) {  // these weights stay in the first cache
        const int64_t end = std::min(first + 8, outputs.end);
        int64_t row = 0;
        for (; row + 4 <= p.num_rows; row += 4) dot_rows<4, kLanes / 4>(p, row, first, end);
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

template void linear<bf16>(const Team&, const bf16*, int64_t, const Weight&, bf16*);
template void linear<float>(const Team&, const bf16*, int64_t, const Weight&, float*);

}  // namespace tandem

TANDEM_API void tandem_linear(
    const void* x, int64_t num_rows, const tandem::Weight* weight, void* y, int32_t y_is_float32) {
    using namespace tandem;
#pragma omp parallel
    {
        const Team team;
        if (y_is_float32) linear(team, static_cast<const bf16*>(x), num_rows, *weight, static_cast<float*>(y));
        else linear(team, static_cast<const bf16*>(x), num_rows, *weight, static_cast<bf16*>(y));
    }
}
