// Carries out one task of attention: online softmax over tiles of keys, read in place from their blocks.
#pragma once

#include <cmath>
#include <limits>

#include "_plan.h"
#include "_tiles.h"

namespace tw {

constexpr int64_t kFewRows = 8;  // up to these the keys are not worth transposing

// One thread's working memory, kept from step to step.
//
// Few rows: q [rows, D], scores [rows, kTileKeys]. Many rows: q [D, kTileRows], scores [kTileKeys, kTileRows], so that a vector
// holds several rows and nothing is summed across its lanes.
struct Buffers {
    std::vector<float> q, sum, scores, copies, max, total, position;
};

// KV is the type keys and values are kept in.
template <class KV>
class Worker {
   public:
    Worker(const Args& args, int64_t max_rows, Buffers& buffers)
        : args_(args), dim_(round_up(args.head_dim, kLanes)), stride_(round_up(max_rows, kLanes)), buffers_(buffers) {
        buffers.q.resize(stride_ * dim_);
        buffers.sum.resize(stride_ * dim_);
        buffers.scores.resize(stride_ * kTileKeys);
        buffers.copies.resize(dim_ * kTileKeys);
        buffers.max.resize(stride_);
        buffers.total.resize(stride_);
        buffers.position.resize(stride_);
    }

    void run(const Task& task, Plan& plan) {
        const int64_t rows = task.num_queries * args_.group();
        const bool few = rows <= kFewRows;
        load_queries(task, few);
        std::fill_n(buffers_.sum.begin(), rows * dim_, 0.0f);
        std::fill_n(buffers_.total.begin(), stride_, 0.0f);
        std::fill_n(buffers_.max.begin(), stride_, -std::numeric_limits<float>::infinity());
        for (int64_t key = task.first_key; key < task.end_key; key += kTileKeys) {
            const int64_t count = std::min(kTileKeys, task.end_key - key);
            if (few)
                attend_few(task, key, count, rows);
            else
                attend_many(task, key, count, rows);
        }
        if (task.partial < 0)
            write(task, rows);
        else
            write_partial(task, rows, plan);
    }

   private:
    // Where a key (and its value) starts in the blocks.
    int64_t locate(const Task& task, int64_t key) const {
        const int64_t block = args_.tables[task.row * args_.max_blocks + key / args_.block_size];
        const int64_t slot = (block * args_.kv_heads + task.kv_head) * args_.block_size + key % args_.block_size;
        return slot * args_.head_dim;
    }

    // Calls fn(where the first key starts, number of keys, offset within the tile) for each block of a tile.
    template <class Fn>
    void for_blocks(const Task& task, int64_t key, int64_t count, Fn fn) const {
        for (int64_t done = 0; done < count;) {
            const int64_t run = std::min(args_.block_size - (key + done) % args_.block_size, count - done);
            fn(locate(task, key + done), run, done);
            done += run;
        }
    }

    // What follows `key` in the same place of the next block, null at the task's end.
    const KV* ahead(const void* blocks, const Task& task, int64_t key) const {
        const int64_t next = key + args_.block_size;
        return next < task.end_key ? static_cast<const KV*>(blocks) + locate(task, next) : nullptr;
    }

    const float* query(const Task& task, int64_t index) const {
        const int64_t token = args_.starts[task.row] + task.first_query + index;
        return args_.q + (token * args_.heads + task.kv_head * args_.group()) * args_.head_dim;
    }

    // Position of the first query of a task in its sequence.
    int64_t first_position(const Task& task) const {
        const int64_t queries = args_.starts[task.row + 1] - args_.starts[task.row];
        return args_.lengths[task.row] - queries + task.first_query;
    }

    void load_queries(const Task& task, bool few) {
        const int64_t group = args_.group(), first = first_position(task);
        const int64_t row_step = few ? dim_ : 1, dim_step = few ? 1 : stride_;
        const float scale = static_cast<float>(args_.scale);
        for (int64_t i = 0; i < task.num_queries; ++i)
            for (int64_t g = 0; g < group; ++g) {
                const float* from = query(task, i) + g * args_.head_dim;
                const int64_t row = i * group + g;
                float* to = buffers_.q.data() + row * row_step;
                for (int64_t d = 0; d < args_.head_dim; ++d) to[d * dim_step] = from[d] * scale;
                buffers_.position[row] = static_cast<float>(first + i);
            }
    }

    void attend_few(const Task& task, int64_t key, int64_t count, int64_t rows) {
        for_blocks(task, key, count, [&](int64_t where, int64_t run, int64_t at) {
            const Matrix<KV> k = {static_cast<const KV*>(args_.key) + where, args_.head_dim};
            dot_all(buffers_.q.data(), dim_, k, run, rows, buffers_.scores.data() + at,
                    ahead(args_.key, task, key + at));
        });
        soften(task, key, count, rows);
        mix(task, key, count, rows, kTileKeys, 1);
    }

    void attend_many(const Task& task, int64_t key, int64_t count, int64_t rows) {
        const int64_t width = round_up(rows, kLanes);
        for_blocks(task, key, count, [&](int64_t where, int64_t run, int64_t at) {
            const float* k = copy(static_cast<const KV*>(args_.key) + where, run);
            multiply_all(Left{k, dim_, 1}, Matrix<float>{buffers_.q.data(), stride_},
                         buffers_.scores.data() + at * stride_, stride_, run, args_.head_dim, width, false);
        });
        for (int64_t row = 0; row < width; row += kLanes) soften_lanes(key, count, row, rows);
        mix(task, key, count, rows, 1, stride_);
    }

    // As soften, for the rows of one vector.
    void soften_lanes(int64_t key, int64_t count, int64_t row, int64_t rows) {
        const Vec never = Vec{} - std::numeric_limits<float>::infinity(), zero = {};
        const Vec position = load(buffers_.position.data() + row), old = load(buffers_.max.data() + row);
        const Vec oldest = args_.window > 0 ? position - static_cast<float>(args_.window - 1) : never;
        float* scores = buffers_.scores.data() + row;
        Vec top = old;
        for (int64_t j = 0; j < count; ++j) {
            const Vec at = zero + static_cast<float>(key + j);
            Vec s = load(scores + j * stride_);
            if (args_.softcap > 0.0) s = capped(s);
            s = at > position ? never : s;
            s = at < oldest ? never : s;
            top = s > top ? s : top;
            top = s == s ? top : s;  // NaN shows
            store(scores + j * stride_, s);
        }
        const Vec base = top == never ? zero : top;  // rows that see nothing yet
        Vec total = zero;
        for (int64_t j = 0; j < count; ++j) {
            const Vec s = load(scores + j * stride_);
            const Vec weight = s == never ? zero : exp_clamped(s - base);
            total += weight;
            store(scores + j * stride_, weight);
        }
        const Vec shrink = exp_clamped(old - base);
        store(buffers_.total.data() + row, load(buffers_.total.data() + row) * shrink + total);
        store(buffers_.max.data() + row, top);
        for (int i = 0; i < kLanes && row + i < rows; ++i)
            if (shrink[i] != 1.0f) scale(buffers_.sum.data() + (row + i) * dim_, shrink[i]);
    }

    void scale(float* sum, float factor) const {
        for (int64_t d = 0; d < dim_; d += kLanes) store(sum + d, load(sum + d) * factor);
    }

    Vec capped(Vec s) const {
        const float cap = static_cast<float>(args_.softcap);
        return cap - 2.0f * cap / (exp_clamped(s * (2.0f / cap)) + 1.0f);
    }

    // Scores of a tile become weights relative to each row's running maximum; what a row may not see becomes 0.
    void soften(const Task& task, int64_t key, int64_t count, int64_t rows) {
        const int64_t length = args_.lengths[task.row];
        const int64_t queries = args_.starts[task.row + 1] - args_.starts[task.row];
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t position = length - queries + task.first_query + r / args_.group();
            const int64_t oldest = args_.window > 0 ? position - args_.window + 1 : 0;
            const int64_t begin = std::clamp<int64_t>(oldest - key, 0, count);
            const int64_t end = std::clamp<int64_t>(position + 1 - key, begin, count);
            soften_row(buffers_.scores.data() + r * kTileKeys, begin, end, count, r);
        }
    }

    void soften_row(float* s, int64_t begin, int64_t end, int64_t count, int64_t r) {
        std::fill(s, s + begin, 0.0f);
        std::fill(s + end, s + count, 0.0f);
        if (begin == end) return;
        if (args_.softcap > 0.0) cap(s, begin, end);
        float top = buffers_.max[r];
#pragma omp simd reduction(max : top)
        for (int64_t j = begin; j < end; ++j) top = s[j] > top ? s[j] : top;
        float total = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int64_t j = begin; j < end; ++j) {
            s[j] = exp_clamped(s[j] - top);
            total += s[j];
        }
        if (top > buffers_.max[r]) {
            const float shrink = std::exp(buffers_.max[r] - top);
            buffers_.total[r] *= shrink;
            float* sum = buffers_.sum.data() + r * dim_;
#pragma omp simd
            for (int64_t d = 0; d < dim_; ++d) sum[d] *= shrink;
            buffers_.max[r] = top;
        }
        buffers_.total[r] += total;
    }

    void cap(float* s, int64_t begin, int64_t end) const {
        const float cap = static_cast<float>(args_.softcap), twice = 2.0f / cap;
#pragma omp simd
        for (int64_t j = begin; j < end; ++j) s[j] = cap - 2.0f * cap / (exp_clamped(s[j] * twice) + 1.0f);
    }

    // Adds the weighted values: weight (row, key) is scores[row * row_step + key * key_step]. Few rows read the values as they
    // lie; many are worth a widened copy.
    void mix(const Task& task, int64_t key, int64_t count, int64_t rows, int64_t row_step, int64_t key_step) {
        const bool few = rows <= kFewRows;
        const bool in_place = dim_ == args_.head_dim && (few || sizeof(KV) == sizeof(float));
        for_blocks(task, key, count, [&](int64_t where, int64_t run, int64_t at) {
            const KV* v = static_cast<const KV*>(args_.value) + where;
            const Left weights = {buffers_.scores.data() + at * key_step, row_step, key_step};
            float* sum = buffers_.sum.data();
            if (in_place)
                multiply_all(weights, Matrix<KV>{v, dim_}, sum, dim_, rows, run, dim_, true,
                             few ? ahead(args_.value, task, key + at) : nullptr);
            else
                multiply_all(weights, Matrix<float>{copy(v, run), dim_}, sum, dim_, rows, run, dim_, true);
        });
    }

    // Keys or values widened, each padded to whole vectors with whatever is there: nobody looks at what becomes of it.
    const float* copy(const KV* from, int64_t run) {
        const int64_t whole = args_.head_dim / kLanes * kLanes;
        for (int64_t j = 0; j < run; ++j, from += args_.head_dim) {
            float* to = buffers_.copies.data() + j * dim_;
            for (int64_t d = 0; d < whole; d += kLanes) store(to + d, widen(from + d));
            for (int64_t d = whole; d < args_.head_dim; ++d) to[d] = to_float(from[d]);
        }
        return buffers_.copies.data();
    }

    void write(const Task& task, int64_t rows) {
        const int64_t group = args_.group();
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t offset = query(task, r / group) - args_.q + r % group * args_.head_dim;
            const float factor = 1.0f / buffers_.total[r];
            for (int64_t d = 0; d < args_.head_dim; ++d) args_.out[offset + d] = buffers_.sum[r * dim_ + d] * factor;
        }
    }

    void write_partial(const Task& task, int64_t rows, Plan& plan) {
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = task.partial + r;
            std::copy_n(buffers_.sum.data() + r * dim_, args_.head_dim, plan.sum.data() + at * args_.head_dim);
            plan.max[at] = buffers_.max[r];
            plan.total[at] = buffers_.total[r];
        }
    }

    const Args& args_;
    const int64_t dim_;     // of a head, up to whole vectors
    const int64_t stride_;  // rows of a task, up to whole vectors
    Buffers& buffers_;
};

}  // namespace tw
