// Vectors of float32 and what the operators do with them. What depends on the instruction set is in vector_avx512.h and
// vector_avx2.h, under the same names; the compiler's flags decide between them:
//
// Vector, kLanes    float32 values; arithmetic by the compiler's own operators on vector types
// Lanes             the first so many of a Vector; load and store with it touch no memory past them
// Words, Halves     kLanes 32-bit words of two bfloat16 each, and the first so many of their halves
// Factor            what the left side of a product consists of; `as_factors` makes it
// Operand           what `add_products` multiplies and adds lane by lane: `load_operand` takes kOperand neighbours of a
//                   row; `load_columns` and `spread_row` take a pair of neighbours in kWordSteps steps, each lane a
//                   column's or all lanes one row's
//
// kTileRows x kTileVectors sums are what the product of tile.h keeps in registers.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace tandem {

using bf16 = uint16_t;

// For memory that vectors are read from: it begins with a cache line, so that no vector lies in two.
template <typename T>
struct LineAllocator {
    using value_type = T;
    static constexpr std::align_val_t kLineBytes{64};

    LineAllocator() = default;
    template <typename Other>
    LineAllocator(const LineAllocator<Other>&) {}

    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLineBytes)); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, kLineBytes); }
    bool operator==(const LineAllocator&) const { return true; }
    bool operator!=(const LineAllocator&) const { return false; }
};

template <typename T>
using Buffer = std::vector<T, LineAllocator<T>>;

inline int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
inline int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

// The first `count` of `width` bits; none for a negative count.
inline uint64_t first_bits(int64_t count, int width) {
    if (count <= 0) return 0;
    const uint64_t all = width == 64 ? ~0ull : (1ull << width) - 1;
    return count >= width ? all : (1ull << count) - 1;
}

}  // namespace tandem

#if defined(__AVX512BF16__)
#include "vector_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "vector_avx2.h"
#else
#error "needs AVX512_BF16, or AVX2 with FMA"
#endif

namespace tandem {

// Brings `count` elements near by loading from each of their cache lines, in order. Such loads set off the hardware's
// stream prefetcher; prefetch instructions do not, and a core can have too few of them under way to fill its bandwidth.
inline void fetch_lines(const bf16* from, int64_t count) {
    for (int64_t i = 0; i < count; i += 32) asm volatile("" ::"r"(*static_cast<const volatile bf16*>(from + i)));
}

// e**x for x <= 0, within 2e-7 of it relatively; where that would be subnormal (below -87) it may be 0.
inline Vector exp_nonpositive(Vector x) {
    const Vector scaled = larger(x, spread(-200.0f)) * spread(1.44269504f);
    const Vector whole = nearest(scaled);
    const Vector rest = scaled - whole;  // within half of 0; 2**rest by Taylor's series
    Vector power = spread(1.5403530e-4f);
    power = fused(power, rest, spread(1.3333558e-3f));
    power = fused(power, rest, spread(9.6181291e-3f));
    power = fused(power, rest, spread(5.5504109e-2f));
    power = fused(power, rest, spread(2.4022651e-1f));
    power = fused(power, rest, spread(6.9314718e-1f));
    power = fused(power, rest, spread(1.0f));
    return times_power_of_two(power, whole);
}

}  // namespace tandem
