// Causal attention over KV blocks; see reference.py for the meaning.
//
// A task is a tile of rows (query tokens times the query heads of one KV head) against a span of keys: online softmax over
// tiles of keys, read in place from their blocks. Short queries over long contexts are cut into spans of kSpan keys, whatever
// else is in the batch, so that a sequence's result does not depend on its neighbours.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "_tiles.h"

namespace {

using namespace tw;

constexpr int64_t kTileRows = 96;  // rows of a task
constexpr int64_t kFewRows = 8;    // up to these the keys are not worth transposing
constexpr int64_t kSpan = 1024;    // keys of a task when queries are few

struct Shape {
    int64_t heads, kv_heads, head_dim, block_size, max_blocks, window;
    float scale, softcap;
    int64_t group() const { return heads / kv_heads; }
    int64_t padded_dim() const { return tw::round_up(head_dim, kLanes); }
};

struct Tensors {
    const float *q, *key, *value;
    const int32_t *starts, *lengths, *tables;
    float* out;
};

struct Task {
    int64_t row, kv_head, first_query, num_queries;  // queries counted within the row
    int64_t first_key, end_key;
    int64_t partial;  // index of the first row of partial results, -1 when the task sees every key
};

struct Partials {
    std::vector<float> sum, max, total;  // [rows, D], [rows], [rows]
};

// One thread's working memory and the walk over a task's keys.
class Worker {
   public:
    Worker(const Shape& shape, const Tensors& tensors, int64_t max_rows)
        : shape_(shape),
          tensors_(tensors),
          dim_(shape.padded_dim()),
          q_(max_rows * dim_),
          sum_(max_rows * dim_),
          scores_(max_rows * kTileKeys),
          keys_(max_rows > kFewRows ? dim_ * kTileKeys : 0),
          values_(dim_ == shape.head_dim ? 0 : dim_ * kTileKeys),
          max_(max_rows),
          total_(max_rows) {}

    void run(const Task& task, Partials& partials) {
        const int64_t rows = task.num_queries * shape_.group();
        load_queries(task);
        std::fill_n(sum_.begin(), rows * dim_, 0.0f);
        std::fill_n(total_.begin(), rows, 0.0f);
        std::fill_n(max_.begin(), rows, -std::numeric_limits<float>::infinity());
        for (int64_t key = task.first_key; key < task.end_key; key += kTileKeys) {
            const int64_t count = std::min(kTileKeys, task.end_key - key);
            score(task, key, count, rows);
            soften(task, key, count, rows);
            mix(task, key, count, rows);
        }
        if (task.partial < 0)
            write(task, rows);
        else
            write_partial(task, rows, partials);
    }

   private:
    // Where a key (and its value) starts in the blocks.
    int64_t locate(const Task& task, int64_t key) const {
        const int64_t block = tensors_.tables[task.row * shape_.max_blocks + key / shape_.block_size];
        const int64_t slot = (block * shape_.kv_heads + task.kv_head) * shape_.block_size + key % shape_.block_size;
        return slot * shape_.head_dim;
    }

    // Calls fn(where the first key starts, number of keys, offset within the tile) for each block of a tile.
    template <class Fn>
    void for_blocks(const Task& task, int64_t key, int64_t count, Fn fn) const {
        for (int64_t done = 0; done < count;) {
            const int64_t run = std::min(shape_.block_size - (key + done) % shape_.block_size, count - done);
            fn(locate(task, key + done), run, done);
            done += run;
        }
    }

    const float* query(const Task& task, int64_t index) const {
        const int64_t token = tensors_.starts[task.row] + task.first_query + index;
        return tensors_.q + (token * shape_.heads + task.kv_head * shape_.group()) * shape_.head_dim;
    }

    void load_queries(const Task& task) {
        const int64_t group = shape_.group();
        for (int64_t i = 0; i < task.num_queries; ++i)
            for (int64_t g = 0; g < group; ++g) {
                const float* from = query(task, i) + g * shape_.head_dim;
                float* to = q_.data() + (i * group + g) * dim_;
                for (int64_t d = 0; d < shape_.head_dim; ++d) to[d] = from[d] * shape_.scale;
            }
    }

    void score(const Task& task, int64_t key, int64_t count, int64_t rows) {
        if (rows <= kFewRows) {
            for_blocks(task, key, count, [&](int64_t where, int64_t run, int64_t at) {
                const Matrix k = {tensors_.key + where, shape_.head_dim};
                dot_all(q_.data(), dim_, k, run, rows, scores_.data() + at);
            });
            return;
        }
        const int64_t width = tw::round_up(count, kLanes);
        for_blocks(task, key, count, [&](int64_t where, int64_t run, int64_t at) {
            const float* k = tensors_.key + where;
            for (int64_t d = 0; d < shape_.head_dim; ++d)
                for (int64_t j = 0; j < run; ++j) keys_[d * kTileKeys + at + j] = k[j * shape_.head_dim + d];
        });
        for (int64_t d = 0; d < shape_.head_dim; ++d)
            std::fill(&keys_[d * kTileKeys + count], &keys_[d * kTileKeys] + width, 0.0f);
        const Matrix keys = {keys_.data(), kTileKeys};
        multiply_all(q_.data(), dim_, keys, scores_.data(), kTileKeys, rows, shape_.head_dim, width, false);
    }

    // Scores of a tile become weights relative to each row's running maximum; what a row may not see becomes 0.
    void soften(const Task& task, int64_t key, int64_t count, int64_t rows) {
        const int64_t length = tensors_.lengths[task.row];
        const int64_t queries = tensors_.starts[task.row + 1] - tensors_.starts[task.row];
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t position = length - queries + task.first_query + r / shape_.group();
            const int64_t oldest = shape_.window > 0 ? position - shape_.window + 1 : 0;
            const int64_t begin = std::clamp<int64_t>(oldest - key, 0, count);
            const int64_t end = std::clamp<int64_t>(position + 1 - key, begin, count);
            soften_row(scores_.data() + r * kTileKeys, begin, end, count, r);
        }
    }

    void soften_row(float* s, int64_t begin, int64_t end, int64_t count, int64_t r) {
        std::fill(s, s + begin, 0.0f);
        std::fill(s + end, s + count, 0.0f);
        if (begin == end) return;
        if (shape_.softcap > 0.0f) cap(s, begin, end);
        float top = max_[r];
#pragma omp simd reduction(max : top)
        for (int64_t j = begin; j < end; ++j) top = s[j] > top ? s[j] : top;
        float total = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int64_t j = begin; j < end; ++j) {
            s[j] = tw::exp_clamped(s[j] - top);
            total += s[j];
        }
        if (top > max_[r]) {
            const float shrink = std::exp(max_[r] - top);
            total_[r] *= shrink;
            float* sum = sum_.data() + r * dim_;
#pragma omp simd
            for (int64_t d = 0; d < dim_; ++d) sum[d] *= shrink;
            max_[r] = top;
        }
        total_[r] += total;
    }

    void cap(float* s, int64_t begin, int64_t end) const {
        const float cap = shape_.softcap, twice = 2.0f / cap;
#pragma omp simd
        for (int64_t j = begin; j < end; ++j) s[j] = cap - 2.0f * cap / (tw::exp_clamped(s[j] * twice) + 1.0f);
    }

    void mix(const Task& task, int64_t key, int64_t count, int64_t rows) {
        for_blocks(task, key, count, [&](int64_t where, int64_t run, int64_t at) {
            const float* v = tensors_.value + where;
            const Matrix values = {dim_ == shape_.head_dim ? v : pad(v, run), dim_};
            multiply_all(scores_.data() + at, kTileKeys, values, sum_.data(), dim_, rows, run, dim_, true);
        });
    }

    const float* pad(const float* v, int64_t run) {
        for (int64_t j = 0; j < run; ++j)
            std::copy_n(v + j * shape_.head_dim, shape_.head_dim, values_.data() + j * dim_);
        return values_.data();
    }

    void write(const Task& task, int64_t rows) {
        const int64_t group = shape_.group();
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t offset = query(task, r / group) - tensors_.q + r % group * shape_.head_dim;
            const float factor = 1.0f / total_[r];
            for (int64_t d = 0; d < shape_.head_dim; ++d) tensors_.out[offset + d] = sum_[r * dim_ + d] * factor;
        }
    }

    void write_partial(const Task& task, int64_t rows, Partials& partials) {
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = task.partial + r;
            std::copy_n(sum_.data() + r * dim_, shape_.head_dim, partials.sum.data() + at * shape_.head_dim);
            partials.max[at] = max_[r];
            partials.total[at] = total_[r];
        }
    }

    const Shape& shape_;
    const Tensors& tensors_;
    const int64_t dim_;
    std::vector<float> q_, sum_, scores_, keys_, values_, max_, total_;
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
};

void plan_tile(const Shape& shape, Plan& plan, Task task, int64_t length, int64_t queries) {
    const int64_t position = length - queries + task.first_query;
    const int64_t first = shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0;
    const int64_t end = position + task.num_queries;
    const int64_t rows = task.num_queries * shape.group();
    const int64_t spans = queries <= task.num_queries ? (end - first + kSpan - 1) / kSpan : 1;
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
        task.end_key = std::min(end, task.first_key + kSpan);
        task.partial = plan.partial_rows;
        plan.partial_rows += rows;
        if (span == 0) plan.merges.push_back({task, spans});
        plan.tasks.push_back(task);
    }
}

Plan make_plan(const Shape& shape, const Tensors& tensors, int64_t batch) {
    Plan plan;
    const int64_t tile = std::max<int64_t>(1, kTileRows / shape.group());
    for (int64_t row = 0; row < batch; ++row) {
        const int64_t queries = tensors.starts[row + 1] - tensors.starts[row];
        // Last tiles first: under causality they see the most keys.
        for (int64_t at = (queries - 1) / tile * tile; at >= 0 && queries > 0; at -= tile)
            for (int64_t head = 0; head < shape.kv_heads; ++head)
                plan_tile(shape, plan, {row, head, at, std::min(tile, queries - at), 0, 0, -1}, tensors.lengths[row],
                          queries);
    }
    return plan;
}

void merge(const Shape& shape, const Tensors& tensors, const Merge& merge, const Partials& partials) {
    const int64_t group = shape.group(), dim = shape.head_dim, rows = merge.first.num_queries * group;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = tensors.starts[merge.first.row] + merge.first.first_query + r / group;
        float* out = tensors.out + (token * shape.heads + merge.first.kv_head * group + r % group) * dim;
        float top = -std::numeric_limits<float>::infinity(), total = 0.0f;
        for (int64_t span = 0; span < merge.spans; ++span)
            top = std::max(top, partials.max[merge.first.partial + span * rows + r]);
        std::fill_n(out, dim, 0.0f);
        for (int64_t span = 0; span < merge.spans; ++span) {
            const int64_t at = merge.first.partial + span * rows + r;
            // A span outside the row's window has seen nothing.
            const float factor = partials.total[at] == 0.0f ? 0.0f : std::exp(partials.max[at] - top);
            total += partials.total[at] * factor;
            for (int64_t d = 0; d < dim; ++d) out[d] += partials.sum[at * dim + d] * factor;
        }
        for (int64_t d = 0; d < dim; ++d) out[d] /= total;
    }
}

// The first batch row that does not fit the tensors, or -1.
int64_t find_bad_row(const Shape& shape, const Tensors& tensors, int64_t tokens, int64_t batch, int64_t blocks) {
    for (int64_t row = 0; row < batch; ++row) {
        const int64_t start = tensors.starts[row], end = tensors.starts[row + 1], length = tensors.lengths[row];
        const int64_t used = (length + shape.block_size - 1) / shape.block_size;
        if (start < 0 || end < start || end > tokens || length < end - start || used > shape.max_blocks) return row;
        for (int64_t i = 0; i < used; ++i) {
            const int64_t block = tensors.tables[row * shape.max_blocks + i];
            if (block < 0 || block >= blocks) return row;
        }
    }
    return -1;
}

}  // namespace

extern "C" int64_t tw_paged_attention(const float* q, const float* key, const float* value, const int32_t* starts,
                                      const int32_t* lengths, const int32_t* tables, float* out, int64_t tokens,
                                      int64_t batch, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t blocks,
                                      int64_t block_size, int64_t max_blocks, int64_t window, float scale,
                                      float softcap, int64_t threads) {
    const Shape shape = {heads, kv_heads, head_dim, block_size, max_blocks, window, scale, softcap};
    const Tensors tensors = {q, key, value, starts, lengths, tables, out};
    const int64_t bad = find_bad_row(shape, tensors, tokens, batch, blocks);
    if (bad >= 0) return bad;
    const Plan plan = make_plan(shape, tensors, batch);
    Partials partials;
    partials.sum.resize(plan.partial_rows * head_dim);
    partials.max.resize(plan.partial_rows);
    partials.total.resize(plan.partial_rows);
    const int64_t count = static_cast<int64_t>(plan.tasks.size()), merges = static_cast<int64_t>(plan.merges.size());
#pragma omp parallel num_threads(threads)
    {
        Worker worker(shape, tensors, plan.max_rows);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; ++i) worker.run(plan.tasks[i], partials);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < merges; ++i) merge(shape, tensors, plan.merges[i], partials);
    }
    return -1;
}
