// Where the queries, keys and values of a task lie in memory.
#pragma once

#include <algorithm>

#include "_plan.h"

namespace tw {

constexpr int64_t kTileKeys = 64;  // keys taken at a time, the last tile of a task may have fewer
constexpr int64_t kFewRows = 8;    // up to these the keys are not worth transposing

struct Place {
    const Args& args;
    const Task& task;

    int64_t rows() const { return task.num_queries * args.group(); }
    bool few() const { return rows() <= kFewRows; }

    // Position of the first query in its sequence.
    int64_t first_position() const {
        const int64_t queries = args.starts[task.row + 1] - args.starts[task.row];
        return args.lengths[task.row] - queries + task.first_query;
    }

    // How many keys from `key` on a row may see, as far as they lie before its position; perhaps none or less.
    int64_t visible(int64_t row, int64_t key) const { return first_position() + row / args.group() + 1 - key; }

    // The first row that may see a key.
    int64_t first_row(int64_t key) const { return std::max<int64_t>(0, key - first_position()) * args.group(); }

    // Offset of a row's query, and of its result: rows are queries times heads.
    int64_t query(int64_t row) const {
        const int64_t token = args.starts[task.row] + task.first_query + row / args.group();
        return (token * args.heads + task.kv_head * args.group() + row % args.group()) * args.head_dim;
    }

    // Offset of a key, and of its value.
    int64_t locate(int64_t key) const {
        const int64_t block = args.tables[task.row * args.max_blocks + key / args.block_size];
        const int64_t slot = (block * args.kv_heads + task.kv_head) * args.block_size + key % args.block_size;
        return slot * args.head_dim;
    }

    // Calls fn(offset of the first key, number of keys, which of the tile it is) for each block of a tile.
    template <class Fn>
    void for_blocks(int64_t key, int64_t count, Fn fn) const {
        for (int64_t done = 0; done < count;) {
            const int64_t run = std::min(args.block_size - (key + done) % args.block_size, count - done);
            fn(locate(key + done), run, done);
            done += run;
        }
    }

    // What follows `key` in the same place of the next block, null at the task's end.
    template <class KV>
    const KV* ahead(const void* blocks, int64_t key) const {
        const int64_t next = key + args.block_size;
        return next < task.end_key ? static_cast<const KV*>(blocks) + locate(next) : nullptr;
    }
};

}  // namespace tw
