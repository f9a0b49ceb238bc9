// Rows of a float table; see reference.py for the meaning.
#include "../_cpu.h"

namespace {

struct Args {
    const int64_t* ids;
    const float* table;
    float* out;
    int64_t count, first_id, rows, width;
};

}  // namespace

extern "C" void tw_embed_gather(const Args* args, tw::Run*) {
    const size_t bytes = args->width * sizeof(float);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < args->count; ++i) {
        const int64_t row = args->ids[i] - args->first_id;
        if (row < 0 || row >= args->rows)
            std::memset(args->out + i * args->width, 0, bytes);
        else
            std::memcpy(args->out + i * args->width, args->table + row * args->width, bytes);
    }
}
