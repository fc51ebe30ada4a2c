// The threads of one parallel region. Functions that take a Team are called by all of its threads with the same
// arguments, do their thread's share, and do not wait for each other: who needs the result calls `wait` first.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace tandem {

struct Range {
    int64_t first;
    int64_t end;
};

struct Team {
    int rank = omp_get_thread_num();
    int size = omp_get_num_threads();

    void wait() const {
#pragma omp barrier
    }

    // This thread's part of `count` things, cut at multiples of `grain`.
    Range share(int64_t count, int64_t grain) const {
        const int64_t grains = (count + grain - 1) / grain;
        const int64_t first = grains * rank / size * grain, end = grains * (rank + 1) / size * grain;
        return {std::min(first, count), std::min(end, count)};
    }
};

}  // namespace tandem
