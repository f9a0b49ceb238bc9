// Runs kernels one after the other inside one parallel region: what a recorded graph of the CPU is.
#include "_cpu.h"

std::atomic<int64_t> tw::work_done{0};

namespace {

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
        tw::count_work();
    }
}

extern "C" int64_t tw_work_done() { return tw::work_done.load(std::memory_order_relaxed); }

extern "C" void tw_run_one(void (*kernel)(const void*, tw::Run*), const void* args, int64_t threads) {
    const Call call = {kernel, args};
    tw_run(&call, 1, threads);
}
