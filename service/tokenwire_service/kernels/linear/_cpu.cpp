// Dense linear layers over packed float weights; see _cpu.h for the layout and reference.py for the meaning.
#include "_cpu.h"

namespace {

using namespace tw;

constexpr int kRows = kLanes == 16 ? 12 : 6;  // rows of x a block of accumulators spans

constexpr int64_t kManyRows = 4 * kRows;

struct Args {
    const float* x;
    const void* weight;
    const float* bias;  // may be null
    float* out;
    int64_t rows, out_features, in_features;
};

// One panel's outputs for R rows. `next` is the panel that comes after it, or null.
template <int R, class W>
void block(const Args& args, const W* panel, const W* next, int64_t row, int64_t column) {
    Vec sum[R][kPanelVecs] = {};
    const float* x = args.x + row * args.in_features;
    for (int64_t k = 0; k < args.in_features; ++k) {
        Vec weight[kPanelVecs];
        for (int i = 0; i < kPanelVecs; ++i) weight[i] = widen(panel + k * kPanel + i * kLanes);
        if (next != nullptr) fetch(next + k * kPanel);
        for (int r = 0; r < R; ++r) {
            const Vec factor = Vec{} + x[r * args.in_features + k];
            for (int i = 0; i < kPanelVecs; ++i) sum[r][i] += factor * weight[i];
        }
    }
    write_panel(args, sum, row, column);
}

template <class W, int R = kRows>
void some_rows(const Args& args, const W* panel, const W* next, int64_t row, int64_t count, int64_t column) {
    if (count == R) return block<R, W>(args, panel, next, row, column);
    if constexpr (R > 1) some_rows<W, R - 1>(args, panel, next, row, count, column);
}

template <class W>
void blocks_of_rows(const Args& args, const W* panel, const W* next, int64_t first, int64_t end, int64_t column) {
    for_blocks_of_rows(first, end, kRows, [&](int64_t row, int64_t count, bool is_last) {
        some_rows<W>(args, panel, is_last ? next : nullptr, row, count, column);
    });
}

// A panel in float32, which many rows are worth; the numbers are the same.
template <class W>
const float* widened(const W* panel, int64_t in_features) {
    thread_local std::vector<float> wide;
    wide.resize(kPanel * in_features);
    for (int64_t at = 0; at < kPanel * in_features; at += kLanes) store(wide.data() + at, widen(panel + at));
    return wide.data();
}

template <class W>
void multiply(const Args& args, const Run& run) {
    const Split split = split_work(args.rows, args.out_features, 4 * kRows, run.threads);
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < split.pieces(); ++piece) {
        const int64_t panel = split.panel(piece);
        const W* weight = static_cast<const W*>(args.weight) + panel * kPanel * args.in_features;
        const int64_t first = split.first_row(piece, args.rows), end = split.end_row(piece, args.rows);
        if (sizeof(W) < sizeof(float) && end - first >= kManyRows)
            blocks_of_rows<float>(args, widened(weight, args.in_features), nullptr, first, end, panel * kPanel);
        else
            blocks_of_rows(args, weight, panel + 1 < split.panels ? weight + kPanel * args.in_features : nullptr, first,
                           end, panel * kPanel);
    }
}

struct PackArgs {
    const float* weight;  // [out_features, in_features]
    void* packed;
    int64_t out_features, in_features;
};

template <class W>
void pack(const PackArgs& args) {
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < (args.out_features + kPanel - 1) / kPanel; ++panel) {
        W* to = static_cast<W*>(args.packed) + panel * kPanel * args.in_features;
        for (int64_t k = 0; k < args.in_features; ++k)
            for (int64_t i = 0; i < kPanel; ++i) {
                const int64_t row = panel * kPanel + i;
                from_float(row < args.out_features ? args.weight[row * args.in_features + k] : 0.0f, to++);
            }
    }
}

struct RowsArgs {
    const int64_t* ids;
    const void* weight;
    float* out;
    int64_t count, first_id, out_features, in_features;
};

// Rows of a packed weight, as an embedding looks them up; zeros for ids outside of it.
template <class W>
void gather(const RowsArgs& args) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < args.count; ++i) {
        const int64_t row = args.ids[i] - args.first_id, width = args.in_features;
        float* to = args.out + i * width;
        if (row < 0 || row >= args.out_features) {
            std::memset(to, 0, width * sizeof(float));
            continue;
        }
        const W* from = static_cast<const W*>(args.weight) + row / kPanel * kPanel * width + row % kPanel;
        for (int64_t k = 0; k < width; ++k) to[k] = to_float(from[k * kPanel]);
    }
}

}  // namespace

extern "C" int64_t tw_linear_panel() { return kPanel; }

#define TW_LINEAR(NAME, TYPE)                                                                              \
    extern "C" void tw_linear_##NAME(const Args* args, Run* run) { multiply<TYPE>(*args, *run); }          \
    extern "C" void tw_linear_pack_##NAME(const PackArgs* args, Run*) { pack<TYPE>(*args); }               \
    extern "C" void tw_linear_rows_##NAME(const RowsArgs* args, Run*) { gather<TYPE>(*args); }

TW_LINEAR(float32, float)
TW_LINEAR(float16, Half)
TW_LINEAR(bfloat16, BFloat)
