// A panel's outputs are the lanes of a vector, so that no sum crosses lanes, and its digits lie in the order in which they
// are read. Sums of a group are integers; they become float32 with the group's scales.
#include "quantised.h"

#include <vector>

#include "bytes.h"

namespace tandem {
namespace {

constexpr int64_t kGroup = 32;
constexpr int64_t kPanelOutputs = 16;
constexpr int kQuads = kGroup / 4;
constexpr int kVectors = kPanelOutputs / kLanes;  // of a panel
constexpr int64_t kQuadBytes = 4 * kPanelOutputs;
constexpr int kTilePanels = kVectors == 1 ? 2 : 1;  // rows times panels that the level's registers hold
constexpr int kRowsOfTile = kVectors == 1 ? 6 : 3;
constexpr int64_t kManyRows = 32;  // of each thread: from here on threads share rows, not outputs

// Rows rounded to 8 bits: a row's value is scale * byte.
struct ByteRows {
    std::vector<int8_t> bytes;    // [num_rows, groups, kGroup]
    std::vector<int32_t> sums;    // [num_rows, groups]: of the bytes
    std::vector<float> scales;    // [num_rows, groups]
    int64_t groups;

    void round(const bf16* x, int64_t num_rows, int64_t width) {
        groups = ceil_div(width, kGroup);
        bytes.resize(num_rows * groups * kGroup);
        sums.resize(num_rows * groups);
        scales.resize(num_rows * groups);
        for (int64_t i = 0; i < num_rows * groups; i++) {
            const int64_t start = i % groups * kGroup;
            round_group(x + i / groups * width + start, width - start, i);
        }
    }

   private:
    void round_group(const bf16* x, int64_t count, int64_t i) {
        Vector values[kGroup / kLanes], highest{}, sum{};
        for (int v = 0; v < kGroup / kLanes; v++) {
            values[v] = load(x + v * kLanes, first_lanes(count - v * kLanes));
            highest = larger(highest, magnitude(values[v]));
        }
        const float largest = largest_of(highest);
        const Vector inverse = spread(largest > 0 ? 127 / largest : 0);
        for (int v = 0; v < kGroup / kLanes; v++) {
            const Vector rounded = nearest(values[v] * inverse);
            store_bytes(&bytes[i * kGroup + v * kLanes], rounded);
            sum += rounded;
        }
        sums[i] = static_cast<int32_t>(sum_of(sum));
        scales[i] = largest / 127;
    }
};

template <Format kFormat>
struct GroupOf;

template <>
struct GroupOf<Format::kInt8> {
    static constexpr int64_t kBytes = kQuads * kQuadBytes, kScales = kPanelOutputs;
    static constexpr bool kHasMinima = false;

    static Bytes quad(const uint8_t* digits, int q) { return load_bytes(digits + q * kQuadBytes); }
    static Integers start(int32_t sum) { return spread_integer(-128 * sum); }
};

template <>
struct GroupOf<Format::kInt4> {
    static constexpr int64_t kBytes = kQuads / 2 * kQuadBytes, kScales = 2 * kPanelOutputs;
    static constexpr bool kHasMinima = true;

    static Bytes quad(const uint8_t* digits, int q) {
        const Bytes both = load_bytes(digits + q % (kQuads / 2) * kQuadBytes);
        return q < kQuads / 2 ? low_halves(both) : high_halves(both);
    }
    static Integers start(int32_t) { return Integers{}; }
};

template <Format kFormat, typename Out>
struct Product {
    using Group = GroupOf<kFormat>;
    const ByteRows& x;
    int64_t num_rows;
    const Weight& weight;
    Out* y;

    void panels(Range range) const {
        int64_t panel = range.first;
        for (; panel + kTilePanels <= range.end; panel += kTilePanels) rows<kTilePanels>(panel);
        for (; panel < range.end; panel++) rows<1>(panel);
    }

   private:
    template <int kPanels>
    void rows(int64_t panel) const {
        int64_t row = 0;
        for (; row + kRowsOfTile <= num_rows; row += kRowsOfTile) tile<kRowsOfTile, kPanels>(row, panel);
        switch (num_rows - row) {
            case 5: tile<5, kPanels>(row, panel); break;
            case 4: tile<4, kPanels>(row, panel); break;
            case 3: tile<3, kPanels>(row, panel); break;
            case 2: tile<2, kPanels>(row, panel); break;
            case 1: tile<1, kPanels>(row, panel); break;
        }
    }

    // kRows rows times the outputs of kPanels panels.
    template <int kRows, int kPanels>
    void tile(int64_t row, int64_t panel) const {
        constexpr int kColumns = kPanels * kVectors;
        Vector sums[kRows][kColumns];
        for (int c = 0; c < kColumns; c++) {
            const Vector bias = bias_of(panel * kPanelOutputs + c * kLanes);
            for (int r = 0; r < kRows; r++) sums[r][c] = bias;
        }
        for (int64_t group = 0; group < x.groups; group++) {
            if (row == 0) prefetch<kPanels>(panel + kPanels, group);
            add_group<kRows, kPanels>(row, panel, group, sums);
        }
        for (int c = 0; c < kColumns; c++) {
            const int64_t output = panel * kPanelOutputs + c * kLanes;
            const Lanes lanes = first_lanes(weight.out_width - output);
            for (int r = 0; r < kRows; r++) store(y + (row + r) * weight.out_width + output, sums[r][c], lanes);
        }
    }

    template <int kRows, int kPanels>
    inline __attribute__((always_inline)) void add_group(
        int64_t row, int64_t panel, int64_t group, Vector (&sums)[kRows][kPanels * kVectors]) const {
        constexpr int kColumns = kPanels * kVectors;
        const int8_t* bytes = &x.bytes[(row * x.groups + group) * kGroup];
        const int64_t row_bytes = x.groups * kGroup;
        Integers dots[kRows][kColumns];
#pragma GCC unroll 6
        for (int r = 0; r < kRows; r++) {
            const Integers start = Group::start(x.sums[(row + r) * x.groups + group]);
#pragma GCC unroll 4
            for (int c = 0; c < kColumns; c++) dots[r][c] = start;
        }
#pragma GCC unroll 8
        for (int q = 0; q < kQuads; q++) {
            Bytes digits[kColumns];
#pragma GCC unroll 4
            for (int c = 0; c < kColumns; c++) {
                digits[c] = Group::quad(digits_of(panel + c / kVectors, group) + c % kVectors * 4 * kLanes, q);
            }
#pragma GCC unroll 6
            for (int r = 0; r < kRows; r++) {
                int32_t four;
                std::memcpy(&four, bytes + r * row_bytes + 4 * q, sizeof four);
                const Bytes quad = spread_integer(four);
#pragma GCC unroll 4
                for (int c = 0; c < kColumns; c++) dots[r][c] = add_quads(dots[r][c], digits[c], quad);
            }
        }
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; c++) {
            const uint16_t* scales = scales_of(panel + c / kVectors, group) + c % kVectors * kLanes;
            const Vector scale = load_float16(scales);
#pragma GCC unroll 6
            for (int r = 0; r < kRows; r++) {
                const int64_t at = (row + r) * x.groups + group;
                sums[r][c] = fused(to_floats(dots[r][c]), scale * spread(x.scales[at]), sums[r][c]);
                if (Group::kHasMinima) {
                    const Vector minimum = load_float16(scales + kPanelOutputs);
                    sums[r][c] = fused(minimum, spread(x.scales[at] * static_cast<float>(x.sums[at])), sums[r][c]);
                }
            }
        }
    }

    // While one pair of panels is multiplied, the next one's digits come.
    template <int kPanels>
    void prefetch(int64_t panel, int64_t group) const {
        for (int p = 0; p < kPanels; p++) {
            const char* digits = reinterpret_cast<const char*>(digits_of(panel + p, group));
            for (int64_t i = 0; i < Group::kBytes; i += 64) _mm_prefetch(digits + i, _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(scales_of(panel + p, group)), _MM_HINT_T0);
        }
    }

    const uint8_t* digits_of(int64_t panel, int64_t group) const {
        return weight.digits + (panel * x.groups + group) * Group::kBytes;
    }
    const uint16_t* scales_of(int64_t panel, int64_t group) const {
        return weight.scales + (panel * x.groups + group) * Group::kScales;
    }
    Vector bias_of(int64_t output) const {
        return weight.bias ? load(weight.bias + output, first_lanes(weight.out_width - output)) : Vector{};
    }
};

// The whole product by one thread, but for the panels that are others'.
template <typename Out>
void multiply_panels(const bf16* x, int64_t num_rows, const Weight& weight, Range panels, Out* y) {
    static thread_local ByteRows rows;
    rows.round(x, num_rows, weight.in_width);
    if (weight.format == Format::kInt8) Product<Format::kInt8, Out>{rows, num_rows, weight, y}.panels(panels);
    else Product<Format::kInt4, Out>{rows, num_rows, weight, y}.panels(panels);
}

}  // namespace

template <typename Out>
void quantised_linear(const Team& team, const bf16* x, int64_t num_rows, const Weight& weight, Out* y) {
    const int64_t num_panels = ceil_div(weight.out_width, kPanelOutputs);
    if (num_rows < kManyRows * team.size) return multiply_panels(x, num_rows, weight, team.share(num_panels, 2), y);
    const Range mine = team.share(num_rows, kRowsOfTile);
    const int64_t count = mine.end - mine.first;
    multiply_panels(
        x + mine.first * weight.in_width, count, weight, {0, num_panels}, y + mine.first * weight.out_width);
}

template void quantised_linear<bf16>(const Team&, const bf16*, int64_t, const Weight&, bf16*);
template void quantised_linear<float>(const Team&, const bf16*, int64_t, const Weight&, float*);

}  // namespace tandem
