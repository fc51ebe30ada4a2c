// The threads of one parallel region. Functions that take a Team are called by all of its threads with the same
// arguments, do their thread's share, and do not wait for each other: who needs the result calls `wait` first.
#pragma once

#include <omp.h>

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace tandem {

struct Range {
    int64_t first;
    int64_t end;
};

// Where the threads of one region wait for each other, several times a layer. They look for about the time that their
// shares differ by before they sleep; OpenMP's own barrier would either sleep at once or look on after the region's end,
// on a core that the rest of the process needs then.
class Barrier {
public:
    void wait(int num_threads) {
        const uint32_t round = round_.load(std::memory_order_relaxed);
        if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads) {
            num_arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            round_.notify_all();
            return;
        }
        for (int looks = 0; looks < kLooks; looks++) {
            if (round_.load(std::memory_order_acquire) != round) return;
            _mm_pause();
        }
        round_.wait(round, std::memory_order_acquire);
    }

private:
    static constexpr int kLooks = 20000;

    std::atomic<uint32_t> round_{0};
    std::atomic<int> num_arrived_{0};
};

struct Team {
    Barrier* barrier = nullptr;  // the region's, where there is anything to wait for
    int rank = omp_get_thread_num();
    int size = omp_get_num_threads();

    void wait() const { barrier->wait(size); }

    // This thread's part of `count` things, cut at multiples of `grain`.
    Range share(int64_t count, int64_t grain) const {
        const int64_t grains = (count + grain - 1) / grain;
        const int64_t first = grains * rank / size * grain, end = grains * (rank + 1) / size * grain;
        return {std::min(first, count), std::min(end, count)};
    }
};

}  // namespace tandem
