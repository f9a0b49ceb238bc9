// Sums and gathers between the ranks of one machine through memory they share, one shot: each rank writes its part, waits
// until all have written, and reads everybody's. See __init__.py for the memory's layout.
#include <sched.h>
#include <time.h>

#include <atomic>

#include "../_cpu.h"

namespace {

constexpr int64_t kFlagBytes = 64;   // a cache line for each rank
constexpr int64_t kPiece = 4096;     // bytes of a piece of work
constexpr int kSpins = 4000;         // some tens of microseconds, while the other ranks are a little late
constexpr int kYields = 500;         // more, for ranks that share cores
constexpr long kSleepNs = 50000;     // and then the cores are left to others

// One rank's view; `turn` counts exchanges and is the same on every rank.
struct Exchange {
    char* memory;
    int64_t rank, size, slot_bytes;
    uint64_t turn;
};

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

inline std::atomic<uint64_t>* flag(const Exchange* e, int64_t rank) {
    static_assert(sizeof(std::atomic<uint64_t>) <= kFlagBytes && std::atomic<uint64_t>::is_always_lock_free, "flags");
    return reinterpret_cast<std::atomic<uint64_t>*>(e->memory + rank * kFlagBytes);
}

// Two slots a rank, used in turn: who writes one again has seen everybody past the turn before, and so done reading it.
inline char* slot(const Exchange* e, uint64_t turn, int64_t rank) {
    return e->memory + e->size * kFlagBytes + ((turn & 1) * e->size + rank) * e->slot_bytes;
}

void wait_for(const std::atomic<uint64_t>* flag, uint64_t turn) {
    for (int waited = 0; flag->load(std::memory_order_acquire) < turn; ++waited) {
        if (waited < kSpins) {
            pause();
        } else if (waited < kSpins + kYields) {
            sched_yield();
        } else {
            const timespec nap = {0, kSleepNs};
            nanosleep(&nap, nullptr);
        }
    }
}

// Called by one thread once this rank's part is written; returns when all parts are.
void meet(Exchange* e, uint64_t turn) {
    e->turn = turn;
    flag(e, e->rank)->store(turn, std::memory_order_release);
    for (int64_t rank = 0; rank < e->size; ++rank) wait_for(flag(e, rank), turn);
}

// All threads of the region copy `bytes`; no barrier at the end.
inline void copy(char* to, const char* from, int64_t bytes) {
#pragma omp for schedule(static) nowait
    for (int64_t begin = 0; begin < bytes; begin += kPiece)
        std::memcpy(to + begin, from + begin, static_cast<size_t>(bytes - begin < kPiece ? bytes - begin : kPiece));
}

struct ReduceArgs {
    float* x;
    Exchange* exchange;
    int64_t count;
};

struct GatherArgs {
    const char* x;
    char* out;
    Exchange* exchange;
    int64_t bytes;
};

// x[begin:end] becomes the sum of all ranks' parts, added in the order of ranks: the same bits on each.
inline void sum(float* x, const Exchange* e, uint64_t turn, int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + tw::kLanes <= end; i += tw::kLanes) {
        tw::Vec total = tw::load(reinterpret_cast<const float*>(slot(e, turn, 0)) + i);
        for (int64_t rank = 1; rank < e->size; ++rank)
            total += tw::load(reinterpret_cast<const float*>(slot(e, turn, rank)) + i);
        tw::store(x + i, total);
    }
    for (; i < end; ++i) {
        float total = reinterpret_cast<const float*>(slot(e, turn, 0))[i];
        for (int64_t rank = 1; rank < e->size; ++rank)
            total += reinterpret_cast<const float*>(slot(e, turn, rank))[i];
        x[i] = total;
    }
}

}  // namespace

extern "C" void tw_all_reduce(const ReduceArgs* args, tw::Run*) {
    Exchange* e = args->exchange;
    const int64_t room = e->slot_bytes / static_cast<int64_t>(sizeof(float)), piece = kPiece / 4;
    for (int64_t done = 0; done < args->count; done += room) {
        const int64_t count = args->count - done < room ? args->count - done : room;
        const uint64_t turn = e->turn + 1;
        float* x = args->x + done;
        copy(slot(e, turn, e->rank), reinterpret_cast<const char*>(x), count * 4);
#pragma omp barrier
#pragma omp single
        meet(e, turn);
#pragma omp for schedule(static)
        for (int64_t begin = 0; begin < count; begin += piece)
            sum(x, e, turn, begin, begin + piece < count ? begin + piece : count);
    }
}

// out [size, bytes]: everybody's x, in the order of ranks.
extern "C" void tw_all_gather(const GatherArgs* args, tw::Run*) {
    Exchange* e = args->exchange;
    for (int64_t done = 0; done < args->bytes; done += e->slot_bytes) {
        const int64_t bytes = args->bytes - done < e->slot_bytes ? args->bytes - done : e->slot_bytes;
        const uint64_t turn = e->turn + 1;
        copy(slot(e, turn, e->rank), args->x + done, bytes);
#pragma omp barrier
#pragma omp single
        meet(e, turn);
        for (int64_t rank = 0; rank < e->size; ++rank)
            copy(args->out + rank * args->bytes + done, slot(e, turn, rank), bytes);
#pragma omp barrier
    }
}
