// Runs kernels one after the other inside one parallel region: what a recorded graph of the CPU is.
#include <atomic>

#include "_cpu.h"

namespace {

// Of this process. A step of a large model takes long; while this grows it does not hang.
std::atomic<int64_t> kernels_run{0};

struct Call {
    void (*kernel)(const void*, tw::Run*);
    const void* args;
};

}  // namespace

extern "C" void tw_run(const Call* calls, int64_t count, int64_t threads) {
    tw::Run run = {threads, {}};
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0; i < count; ++i) {
        calls[i].kernel(calls[i].args, &run);
#pragma omp master
        kernels_run.store(kernels_run.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
}

extern "C" int64_t tw_kernels_run() { return kernels_run.load(std::memory_order_relaxed); }

extern "C" void tw_run_one(void (*kernel)(const void*, tw::Run*), const void* args, int64_t threads) {
    const Call call = {kernel, args};
    tw_run(&call, 1, threads);
}
