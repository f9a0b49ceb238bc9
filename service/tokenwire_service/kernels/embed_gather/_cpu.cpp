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

// The first of the ids that is no row, or -1.
extern "C" int64_t tw_check_rows(const int64_t* ids, int64_t count, int64_t rows) {
    for (int64_t i = 0; i < count; ++i)
        if (ids[i] < 0 || ids[i] >= rows) return i;
    return -1;
}

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
