// Work in pieces that a region's threads take from one another, for steps so short that other processes' turns on the
// cores count. Nobody waits long for a thread that has lost its core: what it left undone is done again by who waits.
// So a piece may be done twice, the second time long after the first, or by two threads at once: it writes the same each
// time, and what it reads stays as it is until the region ends.
#pragma once

#include <atomic>
#include <cstdint>

#include "team.h"
#include "vector.h"

namespace tandem {

// What one thread begins with, on a cache line of its own: mostly nobody else writes to it.
struct alignas(64) PieceQueue {
    static constexpr int64_t kMost = 64;  // pieces

    std::atomic<int64_t> num_taken{0};
    std::atomic<uint64_t> done{0};  // a bit a piece
};

// One operation's pieces. `queues` are the operation's own, one a thread, all zero when the region begins.
class Pieces {
   public:
    Pieces(PieceQueue* queues, int num_threads, int64_t count)
        : queues_(queues), num_threads_(num_threads), count_(std::min(count, num_threads * PieceQueue::kMost)) {}

    int64_t count() const { return count_; }

    bool done() const {
        for (int owner = 0; owner < num_threads_; owner++) {
            if (missing(owner)) return false;
        }
        return true;
    }

    // Returns when all pieces are done, by whom ever. `piece` is called with a number below `count`.
    template <typename Piece>
    void work(int rank, const Piece& piece) const {
        for (int i = 0; i < num_threads_; i++) take((rank + i) % num_threads_, piece);
        for (int i = 0; i < num_threads_; i++) take_over((rank + i) % num_threads_, piece);
    }

   private:
    static constexpr int kLooks = 500;  // for about as long as a piece takes

    int64_t first(int owner) const { return count_ * owner / num_threads_; }
    uint64_t all(int owner) const { return first_bits(first(owner + 1) - first(owner), PieceQueue::kMost); }
    uint64_t missing(int owner) const { return all(owner) & ~queues_[owner].done.load(std::memory_order_acquire); }

    template <typename Piece>
    void take(int owner, const Piece& piece) const {
        PieceQueue& queue = queues_[owner];
        const int64_t end = first(owner + 1) - first(owner);
        while (queue.num_taken.load(std::memory_order_relaxed) < end) {
            const int64_t i = queue.num_taken.fetch_add(1, std::memory_order_relaxed);
            if (i < end) finish(owner, i, piece);
        }
    }

    template <typename Piece>
    void take_over(int owner, const Piece& piece) const {
        for (int looks = 0; looks < kLooks; looks++) {
            if (!missing(owner)) return;
            _mm_pause();
        }
        while (const uint64_t left = missing(owner)) finish(owner, __builtin_ctzll(left), piece);
    }

    template <typename Piece>
    void finish(int owner, int64_t i, const Piece& piece) const {
        piece(first(owner) + i);
        queues_[owner].done.fetch_or(1ull << i, std::memory_order_release);
    }

    PieceQueue* queues_;
    int num_threads_;
    int64_t count_;
};

}  // namespace tandem
