#include "sampling.h"

#include <functional>
#include <limits>
#include <numeric>

#include "api.h"
#include "team.h"
#include "vector.h"

namespace tandem {
namespace {

constexpr int64_t kSpan = 64;  // tokens that are summed, searched and passed over together
constexpr float kHeavy = 1.0f / 16;  // of a token's weight: what is looked at first for top-p

uint32_t low_word(uint64_t value) { return static_cast<uint32_t>(value); }
uint32_t high_word(uint64_t value) { return static_cast<uint32_t>(value >> 32); }

// In the open interval (0, 1); see kernels/philox.py.
double uniform(uint64_t seed, uint64_t position) {
    uint32_t words[4] = {low_word(position), high_word(position), 0, 0};
    uint32_t key[2] = {low_word(seed), high_word(seed)};
    for (int round = 0; round < 10; round++) {
        const uint64_t first = 0xD2511F53ull * words[0], second = 0xCD9E8D57ull * words[2];
        words[0] = high_word(second) ^ words[1] ^ key[0];
        words[1] = low_word(second);
        words[2] = high_word(first) ^ words[3] ^ key[1];
        words[3] = low_word(first);
        key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
    }
    const uint64_t bits = static_cast<uint64_t>(words[0]) << 20 | words[1] >> 12;
    return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

// A row's logits by spans. A token's weight is its probability up to a factor: the likeliest weighs 1.
class Row {
   public:
    Row(const float* logits, int64_t vocab_size, float temperature)
        : logits_(logits), vocab_size_(vocab_size), temperature_(temperature), peaks_(ceil_div(vocab_size, kSpan)) {
        for (int64_t span = 0; span < num_spans(); span++) peaks_[span] = peak_of(span);
        highest_ = *std::max_element(peaks_.begin(), peaks_.end());
    }

    int64_t num_spans() const { return static_cast<int64_t>(peaks_.size()); }
    int64_t first(int64_t span) const { return span * kSpan; }
    int64_t size(int64_t span) const { return std::min(kSpan, vocab_size_ - first(span)); }

    int64_t likeliest() const {
        const int64_t span = std::find(peaks_.begin(), peaks_.end(), highest_) - peaks_.begin();
        if (span == num_spans()) return 0;  // of what are no numbers
        const float* from = logits_ + first(span);
        return std::find(from, from + size(span), highest_) - logits_;
    }

    // `to`: kSpan values; beyond the vocabulary they are 0.
    void weigh(int64_t span, float* to) const {
        for (int64_t i = 0; i < kSpan; i += kLanes) store(to + i, weights(load_logits(span, i)));
    }

    float weight_of(int64_t span) const {
        Vector sum = spread(0.0f);
        for (int64_t i = 0; i < kSpan; i += kLanes) sum = sum + weights(load_logits(span, i));
        return sum_of(sum);
    }

    // Of each span's likeliest token.
    std::vector<float> peak_weights() const {
        std::vector<float> found(peaks_.size());
        for (int64_t i = 0; i < num_spans(); i += kLanes) {
            const Lanes lanes = first_lanes(num_spans() - i);
            store(found.data() + i, weights(load(peaks_.data() + i, lanes)), lanes);
        }
        return found;
    }

   private:
    Vector load_logits(int64_t span, int64_t offset) const {
        const int64_t at = first(span) + offset, left = vocab_size_ - at;
        if (left >= kLanes) return load(logits_ + at);
        const Vector never = spread(-std::numeric_limits<float>::infinity());
        return left > 0 ? keep(load(logits_ + at, first_lanes(left)), first_bits(left, kLanes), never) : never;
    }

    float peak_of(int64_t span) const {
        Vector peak = load_logits(span, 0);
        for (int64_t i = kLanes; i < kSpan; i += kLanes) peak = larger(peak, load_logits(span, i));
        return largest_of(peak);
    }

    Vector weights(Vector logits) const {
        return exp_nonpositive((logits - spread(highest_)) / spread(temperature_));
    }

    const float* logits_;
    int64_t vocab_size_;
    float temperature_;
    std::vector<float> peaks_;  // the highest logit of each span
    float highest_;
};

// Tokens in the order of their ids.
struct Tokens {
    std::vector<int64_t> ids;
    std::vector<float> weights;
    int64_t count = 0;

    void make_room(int64_t more) {
        if (count + more <= static_cast<int64_t>(ids.size())) return;
        ids.resize(2 * count + more);
        weights.resize(2 * count + more);
    }

    // There must be room. Without a branch, which would be guessed wrong too often.
    void add_if(bool kept, int64_t id, float weight) {
        ids[count] = id;
        weights[count] = weight;
        count += kept;
    }

    double total() const { return std::accumulate(weights.begin(), weights.begin() + count, 0.0); }
};

// Those of the row that weigh `least` or more.
Tokens tokens_from(const Row& row, const std::vector<float>& peaks, float least) {
    Tokens found;
    float weights[kSpan];
    for (int64_t span = 0; span < row.num_spans(); span++) {
        if (peaks[span] < least) continue;
        row.weigh(span, weights);
        found.make_room(kSpan);
        for (int64_t i = 0; i < row.size(span); i++) found.add_if(weights[i] >= least, row.first(span) + i, weights[i]);
    }
    return found;
}

Tokens tokens_from(const Tokens& tokens, float least) {
    Tokens found;
    found.make_room(tokens.count);
    for (int64_t i = 0; i < tokens.count; i++) {
        found.add_if(tokens.weights[i] >= least, tokens.ids[i], tokens.weights[i]);
    }
    return found;
}

// Of the first `count` weights; 0 when there are fewer than k.
float kth_largest(std::vector<float> weights, int64_t count, int64_t k) {
    if (k > count) return 0.0f;
    std::nth_element(weights.begin(), weights.begin() + k - 1, weights.begin() + count, std::greater<float>());
    return weights[k - 1];
}

// The least of the fewest and largest weights that together reach `target`: what is left to search is parted around a
// pivot until the pivot is it.
float least_of_mass(std::vector<float> weights, int64_t count, double target) {
    auto first = weights.begin(), end = weights.begin() + count;
    float pivot = 0.0f;
    while (first != end) {
        pivot = first[(end - first) / 2];
        const auto equal = std::partition(first, end, [&](float weight) { return weight > pivot; });
        const auto smaller = std::partition(equal, end, [&](float weight) { return weight == pivot; });
        const double above = std::accumulate(first, equal, 0.0);
        if (first != equal && above >= target) {
            end = equal;
            continue;
        }
        target -= above + static_cast<double>(pivot) * static_cast<double>(smaller - equal);
        if (target <= 0.0) break;
        first = smaller;
    }
    return pivot;
}

// Where the running sum passes `target`, which is brought back into it where rounding has led out; not at a weight of 0.
int64_t passes(const float* weights, int64_t count, double target) {
    double sum = 0.0;
    int64_t last = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += weights[i];
        if (sum > std::max(target, 0.0)) return i;
        if (weights[i] > 0.0f) last = i;
    }
    return last;
}

std::vector<float> span_weights(const Row& row) {
    std::vector<float> found(row.num_spans());
    for (int64_t span = 0; span < row.num_spans(); span++) found[span] = row.weight_of(span);
    return found;
}

// By spans, then within the span that was found.
int64_t invert(const Row& row, double uniform) {
    const std::vector<float> spans = span_weights(row);
    const double target = uniform * std::accumulate(spans.begin(), spans.end(), 0.0);
    const int64_t span = passes(spans.data(), row.num_spans(), target);
    float weights[kSpan];
    row.weigh(span, weights);
    const double before = std::accumulate(spans.begin(), spans.begin() + span, 0.0);
    return row.first(span) + passes(weights, row.size(span), target - before);
}

// The fewest and likeliest of `tokens` that together reach `target`, and their equals.
Tokens top_p(const Tokens& tokens, double target) {
    return tokens_from(tokens, least_of_mass(tokens.weights, tokens.count, target));
}

// Of the whole row. Few tokens do in most rows: lighter ones are looked at only where the heavier do not reach it.
Tokens top_p(const Row& row, const std::vector<float>& peaks, double limit) {
    const std::vector<float> spans = span_weights(row);
    const double total = std::accumulate(spans.begin(), spans.end(), 0.0), target = limit * total;
    // All that weigh less than this weigh less together than what is left out.
    const float never = static_cast<float>((1.0 - limit) * total / static_cast<double>(row.num_spans() * kSpan));
    for (float least = kHeavy; least > never; least *= kHeavy) {
        const Tokens heavy = tokens_from(row, peaks, least);
        if (heavy.total() >= target) return top_p(heavy, target);
    }
    return top_p(tokens_from(row, peaks, never), target);
}

// At least k weigh as much as the k-th of the spans' peaks.
Tokens top_k(const Row& row, const std::vector<float>& peaks, int64_t k) {
    const Tokens likely = tokens_from(row, peaks, kth_largest(peaks, row.num_spans(), k));
    return tokens_from(likely, kth_largest(likely.weights, likely.count, k));
}

// Top-k, top-p of what is left, min-p relative to the likeliest. Equals of the last one kept are kept with it.
Tokens filter(const Row& row, const DrawRow& draw) {
    const std::vector<float> peaks = row.peak_weights();
    const float min_p = static_cast<float>(draw.min_p);
    if (draw.top_k > 0) {
        const Tokens kept = top_k(row, peaks, draw.top_k);
        return tokens_from(draw.top_p < 1.0 ? top_p(kept, draw.top_p * kept.total()) : kept, min_p);
    }
    return draw.top_p < 1.0 ? tokens_from(top_p(row, peaks, draw.top_p), min_p) : tokens_from(row, peaks, min_p);
}

}  // namespace

int64_t draw_token(const float* logits, int64_t vocab_size, const DrawRow& draw) {
    const Row row(logits, vocab_size, draw.temperature);
    if (draw.temperature == 0.0f) return row.likeliest();
    const double chosen = uniform(draw.seed, draw.position);
    if (draw.top_k <= 0 && draw.top_p >= 1.0 && draw.min_p <= 0.0) return invert(row, chosen);
    const Tokens kept = filter(row, draw);
    if (kept.count == 0) return row.likeliest();
    return kept.ids[passes(kept.weights.data(), kept.count, chosen * kept.total())];
}

}  // namespace tandem

// `logits`: [num_rows, vocab_size], rows `stride` elements apart; `tokens`: [num_rows].
TANDEM_API void tandem_draw_tokens(
    const float* logits, int64_t stride, int64_t num_rows, int64_t vocab_size, const tandem::DrawRow* rows,
    int64_t* tokens) {
#pragma omp parallel for schedule(dynamic) if (num_rows > 1)
    for (int64_t row = 0; row < num_rows; row++) {
        tokens[row] = tandem::draw_token(logits + row * stride, vocab_size, rows[row]);
    }
}
