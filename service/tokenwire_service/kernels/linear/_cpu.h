// Shared by the linear kernels: how packed weights lie in memory.
//
// Output features are cut into panels of kPanel; a panel holds, for each input feature in turn, that feature's weights for all
// its outputs, side by side. The last panel is padded with zeros. Every output is one chain of multiply-adds over the input
// features in order, whatever the number of rows: a row's result does not depend on who else is in the batch.
#pragma once

#include "../_cpu.h"

namespace tw {

constexpr int kPanelVecs = 2;
constexpr int64_t kPanel = kPanelVecs * kLanes;

// How a [rows, panels] product is cut into pieces of work: by panels, and by rows too where panels are few.
struct Split {
    int64_t panels, row_parts;
    int64_t pieces() const { return panels * row_parts; }
    int64_t panel(int64_t piece) const { return piece / row_parts; }
    // Where the rows of a piece begin; those of the next end them.
    int64_t first_row(int64_t piece, int64_t rows) const { return rows * (piece % row_parts) / row_parts; }
    int64_t end_row(int64_t piece, int64_t rows) const { return rows * (piece % row_parts + 1) / row_parts; }
};

// Calls fn(first row, number of rows, whether it is the last) for blocks of equal height, at most `height`: a last one of a
// single row would be slow.
template <class Fn>
static inline void for_blocks_of_rows(int64_t first, int64_t end, int64_t height, Fn fn) {
    const int64_t blocks = (end - first + height - 1) / height;
    for (int64_t i = 0; i < blocks; ++i) {
        const int64_t from = first + (end - first) * i / blocks, to = first + (end - first) * (i + 1) / blocks;
        fn(from, to - from, i + 1 == blocks);
    }
}

static inline Split split_work(int64_t rows, int64_t out_features, int64_t min_rows, int64_t threads) {
    const int64_t panels = (out_features + kPanel - 1) / kPanel;
    const int64_t wanted = (8 * threads + panels - 1) / panels, possible = (rows + min_rows - 1) / min_rows;
    return {panels, wanted < possible ? wanted : possible};
}

// Asks for weights that are read soon in the second cache.
template <class W>
static inline void fetch(const W* next, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(W))) __builtin_prefetch(next + i, 0, 2);
}

// Writes a vector's worth of results, fewer where the row ends.
static inline void write_vec(float* to, Vec value, int64_t left) {
    if (left >= kLanes)
        store(to, value);
    else if (left > 0)
        std::memcpy(to, &value, left * sizeof(float));
}

// Adds the bias to one panel's sums for R rows and writes them; Args has bias (or null), out and out_features.
template <int R, class Args>
static inline void write_panel(const Args& args, const Vec (&sum)[R][kPanelVecs], int64_t row, int64_t column) {
    for (int i = 0; i < kPanelVecs; ++i) {
        const int64_t at = column + i * kLanes, left = args.out_features - at;
        Vec bias = {};
        if (args.bias != nullptr && left > 0)
            std::memcpy(&bias, args.bias + at, (left < kLanes ? left : kLanes) * sizeof(float));
        for (int r = 0; r < R; ++r) write_vec(args.out + (row + r) * args.out_features + at, sum[r][i] + bias, left);
    }
}

}  // namespace tw
