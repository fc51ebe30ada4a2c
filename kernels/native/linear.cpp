// Two forms. For few rows the weights stream through once and every output is a sum along its weight row: nothing is
// rearranged. For many rows a panel of weight rows is packed once and multiplied with all of the thread's rows.
#include "linear.h"

#include <vector>

#include "api.h"
#include "tile.h"

namespace tandem {
namespace {

constexpr int64_t kManyRows = 56;       // from here on packing pays
constexpr int64_t kPrefetchBytes = 4096;  // how far ahead of the multiplication weights are asked for

template <typename Out>
struct Product {
    const bf16* x;
    int64_t num_rows;
    const Weight& weight;
    Out* y;

    __m512 bias(int64_t first_output, __mmask16 lanes) const {
        return weight.bias ? load(weight.bias + first_output, lanes) : _mm512_setzero_ps();
    }
};

// kRows x kOutputs sums, kRows * kOutputs <= 16, from `first_row` and `first_output` on.
template <int kRows, int kOutputs, typename Out>
inline void dot_tile(const Product<Out>& p, int64_t first_row, int64_t first_output) {
    const int64_t width = p.weight.in_width;
    const bf16* x = p.x + first_row * width;
    const bf16* w = p.weight.values + first_output * width;
    __m512 sums[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) sums[i] = _mm512_setzero_ps();
    auto add = [&](int64_t k, auto load_pairs) __attribute__((always_inline)) {
        __m512i rows[kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; r++) rows[r] = load_pairs(x + r * width + k);
#pragma GCC unroll 16
        for (int o = 0; o < kOutputs; o++) {
            const bf16* from = w + o * width + k;
            _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetchBytes, _MM_HINT_T0);
            const __m512i column = load_pairs(from);
#pragma GCC unroll 4
            for (int r = 0; r < kRows; r++) sums[r * kOutputs + o] = dot_pairs(sums[r * kOutputs + o], rows[r], column);
        }
    };
    int64_t k = 0;
    for (; k + 32 <= width; k += 32) add(k, [](const bf16* from) { return _mm512_loadu_si512(from); });
    const __mmask32 rest = first_halves(width - k);
    if (rest) add(k, [rest](const bf16* from) { return _mm512_maskz_loadu_epi16(rest, from); });
    const __m512 totals = sum_lanes(sums);
    const __m512 bias = p.bias(first_output, first_lanes(kOutputs));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
        const __m512i lanes = _mm512_add_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(r * kOutputs));
        const __m512 row = _mm512_add_ps(_mm512_permutexvar_ps(lanes, totals), bias);
        store(p.y + (first_row + r) * p.weight.out_width + first_output, row, first_lanes(kOutputs));
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
    if (p.num_rows == 1) return dot_rows<1, 16>(p, 0, outputs.first, outputs.end);
    for (int64_t first = outputs.first; first < outputs.end; first += 8) {  // these weights stay in the first cache
        const int64_t end = std::min(first + 8, outputs.end);
        int64_t row = 0;
        for (; row + 4 <= p.num_rows; row += 4) dot_rows<4, 4>(p, row, first, end);
        switch (p.num_rows - row) {
            case 3: dot_rows<3, 4>(p, row, first, end); break;
            case 2: dot_rows<2, 8>(p, row, first, end); break;
            case 1: dot_rows<1, 8>(p, row, first, end); break;
        }
    }
}

template <int kRows, typename Out>
inline void panel_tile(const Product<Out>& p, const uint32_t* panel, int64_t row, int64_t first_output) {
    __m512 sums[kRows][kPanelVectors];
    for (int v = 0; v < kPanelVectors; v++) {
        const int64_t output = first_output + v * kLanes;
        const __m512 bias = p.bias(output, first_lanes(p.weight.out_width - output));
        for (int r = 0; r < kRows; r++) sums[r][v] = bias;
    }
    const int64_t width = p.weight.in_width;
    multiply<kRows>(p.x + row * width, width, panel, kPanel, width / 2, sums);
    for (int r = 0; r < kRows; r++) {
        Out* to = p.y + (row + r) * p.weight.out_width + first_output;
        for (int v = 0; v < kPanelVectors; v++) {
            store(to + v * kLanes, sums[r][v], first_lanes(p.weight.out_width - first_output - v * kLanes));
        }
    }
}

template <typename Out>
void panel_rows(const Product<Out>& p, Range rows) {
    static thread_local std::vector<uint32_t> panel;
    panel.resize(panel_words(p.weight.in_width));
    for (int64_t output = 0; output < p.weight.out_width; output += kPanel) {
        const bf16* columns[kPanel];
        for (int64_t i = 0; i < kPanel; i++) {
            columns[i] = output + i < p.weight.out_width ? p.weight.values + (output + i) * p.weight.in_width : nullptr;
        }
        pack_panel(columns, 0, p.weight.in_width, kLanes * p.weight.in_width, panel.data());
        int64_t row = rows.first;
        for (; row + kTileRows <= rows.end; row += kTileRows) panel_tile<kTileRows>(p, panel.data(), row, output);
        switch (rows.end - row) {
            case 5: panel_tile<5>(p, panel.data(), row, output); break;
            case 4: panel_tile<4>(p, panel.data(), row, output); break;
            case 3: panel_tile<3>(p, panel.data(), row, output); break;
            case 2: panel_tile<2>(p, panel.data(), row, output); break;
            case 1: panel_tile<1>(p, panel.data(), row, output); break;
        }
    }
}

}  // namespace

template <typename Out>
void linear(const Team& team, const bf16* x, int64_t num_rows, const Weight& weight, Out* y) {
    const Product<Out> product{x, num_rows, weight, y};
    if (num_rows < kManyRows || weight.in_width % 2) return dot_outputs(product, team.share(weight.out_width, 16));
    const Range rows = team.share(num_rows, kTileRows);
    if (rows.first < rows.end) panel_rows(product, rows);
}

template void linear<bf16>(const Team&, const bf16*, int64_t, const Weight&, bf16*);
template void linear<float>(const Team&, const bf16*, int64_t, const Weight&, float*);

}  // namespace tandem

TANDEM_API void tandem_linear(
    const void* x, int64_t num_rows, const void* weight, const void* bias, int64_t out_width, int64_t in_width,
    void* y, int32_t y_is_float32) {
    using namespace tandem;
    const Weight w{static_cast<const bf16*>(weight), static_cast<const bf16*>(bias), out_width, in_width};
#pragma omp parallel
    {
        const Team team;
        if (y_is_float32) linear(team, static_cast<const bf16*>(x), num_rows, w, static_cast<float*>(y));
        else linear(team, static_cast<const bf16*>(x), num_rows, w, static_cast<bf16*>(y));
    }
}
