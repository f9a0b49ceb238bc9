// How attention over a flat batch is cut into tasks.
//
// A task is a tile of rows (query tokens times the query heads of one KV head) against a span of keys. Short queries over long
// contexts are cut into spans of kSpan keys, whatever else is in the batch, so that a sequence's result does not depend on its
// neighbours.
#pragma once

#include <algorithm>
#include <vector>

#include "../_cpu.h"

namespace tw {

constexpr int64_t kTileRows = 96;  // rows of a task
constexpr int64_t kSpan = 256;     // keys of a task when queries are few

struct Args {
    const float* q;
    const void *key, *value;
    const int32_t *starts, *lengths, *tables;
    float* out;
    int64_t tokens, batch, heads, kv_heads, head_dim, block_size, max_blocks, window;  // window 0: none
    double scale, softcap;                                                             // softcap 0: none
    int64_t group() const { return heads / kv_heads; }
};

struct Task {
    int64_t row, kv_head, first_query, num_queries;  // queries counted within the row
    int64_t first_key, end_key;
    int64_t partial;  // index of the first row of partial results, -1 when the task sees every key
};

// A row of queries whose keys were cut into spans.
struct Merge {
    Task first;
    int64_t spans;
};

struct Plan {
    std::vector<Task> tasks;
    std::vector<Merge> merges;
    int64_t partial_rows = 0, max_rows = 0;
    std::vector<float> sum, max, total;  // partial results: [partial_rows, D], [partial_rows], [partial_rows]
};

inline void plan_tile(const Args& args, Plan& plan, Task task, int64_t length, int64_t queries) {
    const int64_t position = length - queries + task.first_query;
    const int64_t first = args.window > 0 ? std::max<int64_t>(0, position - args.window + 1) : 0;
    const int64_t end = position + task.num_queries;
    const int64_t rows = task.num_queries * args.group();
    // The last span takes up to half of another.
    const int64_t spans = queries <= task.num_queries ? std::max<int64_t>(1, (end - first + kSpan / 2 - 1) / kSpan) : 1;
    plan.max_rows = std::max(plan.max_rows, rows);
    task.partial = -1;
    task.first_key = first;
    task.end_key = end;
    if (spans <= 1) {
        plan.tasks.push_back(task);
        return;
    }
    for (int64_t span = 0; span < spans; ++span) {
        task.first_key = first + span * kSpan;
        task.end_key = span + 1 == spans ? end : task.first_key + kSpan;
        task.partial = plan.partial_rows;
        plan.partial_rows += rows;
        if (span == 0) plan.merges.push_back({task, spans});
        plan.tasks.push_back(task);
    }
}

inline Plan make_plan(const Args& args) {
    Plan plan;
    const int64_t tile = std::max<int64_t>(1, kTileRows / args.group());
    for (int64_t row = 0; row < args.batch; ++row) {
        const int64_t queries = args.starts[row + 1] - args.starts[row];
        // Last tiles first: under causality they see the most keys.
        for (int64_t at = (queries - 1) / tile * tile; at >= 0 && queries > 0; at -= tile)
            for (int64_t head = 0; head < args.kv_heads; ++head)
                plan_tile(args, plan, {row, head, at, std::min(tile, queries - at), 0, 0, -1}, args.lengths[row],
                          queries);
    }
    plan.sum.resize(plan.partial_rows * args.head_dim);
    plan.max.resize(plan.partial_rows);
    plan.total.resize(plan.partial_rows);
    return plan;
}

}  // namespace tw
