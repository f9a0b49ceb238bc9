// Sums and gathers between the ranks of one machine through memory they share, one shot: each rank writes its part, waits
// until all have written, and reads everybody's. See __init__.py for the memory's layout.
#include <sched.h>

#include <atomic>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../_cpu.h"

namespace {

constexpr int64_t kFlagBytes = 64;  // a cache line for each rank
constexpr int64_t kPiece = 4096;    // bytes of a piece of work
constexpr int kSpins = 3000;        // some tens of microseconds, while another rank is a little late; then its core may be ours

// How many exchanges a rank has written its part of, and how many sleep until it has written more.
struct Flag {
    std::atomic<uint32_t> turn, sleepers;
};
static_assert(sizeof(Flag) <= kFlagBytes && std::atomic<uint32_t>::is_always_lock_free, "flags are shared by processes");

// One rank's view; `turn` counts exchanges, wraps around, and is the same on every rank.
struct Exchange {
    char* memory;
    int64_t rank, size, slot_bytes, turn;
};

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

inline Flag* flag(const Exchange* e, int64_t rank) { return reinterpret_cast<Flag*>(e->memory + rank * kFlagBytes); }

// Two slots a rank, used in turn: who writes one again has seen everybody past the turn before, and so done reading it.
inline char* slot(const Exchange* e, uint32_t turn, int64_t rank) {
    return e->memory + e->size * kFlagBytes + ((turn & 1) * e->size + rank) * e->slot_bytes;
}

inline bool is_past(uint32_t now, uint32_t turn) { return static_cast<int32_t>(now - turn) >= 0; }

void sleep_while(Flag* flag, uint32_t now) {
#if defined(__linux__)
    syscall(SYS_futex, &flag->turn, FUTEX_WAIT, now, nullptr, nullptr, 0);
#else
    sched_yield();
#endif
}

void wake_sleepers(Flag* flag) {
#if defined(__linux__)
    if (flag->sleepers.load() > 0) syscall(SYS_futex, &flag->turn, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

void wait_for(Flag* flag, uint32_t turn) {
    for (int spins = 0; spins < kSpins; ++spins) {
        if (is_past(flag->turn.load(std::memory_order_acquire), turn)) return;
        pause();
    }
    flag->sleepers.fetch_add(1);
    for (uint32_t now = flag->turn.load(); !is_past(now, turn); now = flag->turn.load()) sleep_while(flag, now);
    flag->sleepers.fetch_sub(1);
}

// Called by one thread once this rank's part is written; returns when all parts are.
void meet(Exchange* e, uint32_t turn) {
    e->turn = turn;
    flag(e, e->rank)->turn.store(turn);
    wake_sleepers(flag(e, e->rank));
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
inline void sum(float* x, const Exchange* e, uint32_t turn, int64_t begin, int64_t end) {
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
        const uint32_t turn = static_cast<uint32_t>(e->turn) + 1;
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
        const uint32_t turn = static_cast<uint32_t>(e->turn) + 1;
        copy(slot(e, turn, e->rank), args->x + done, bytes);
#pragma omp barrier
#pragma omp single
        meet(e, turn);
        for (int64_t rank = 0; rank < e->size; ++rank)
            copy(args->out + rank * args->bytes + done, slot(e, turn, rank), bytes);
#pragma omp barrier
    }
}
