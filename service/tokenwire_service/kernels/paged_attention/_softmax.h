// Online softmax over tiles of keys: what is kept for each row of a task, and how scores become weights.
#pragma once

#include <cmath>
#include <limits>

#include "_place.h"

namespace tw {

// One thread's working memory, kept from step to step.
struct Buffers {
    std::vector<float> q, sum, scores, copies, max, total, position;
    std::vector<BFloat> narrow_q, weights;
    std::vector<int32_t> pairs;
    std::vector<float> scaled;
};

// Scores of few rows lie as [rows, kTileKeys]; those of many as [kTileKeys, stride], so that a vector holds several rows and
// nothing is summed across its lanes.
class Softmax {
   public:
    // dim: that of a head, up to whole vectors. stride: rows of a task, up to whole vectors.
    Softmax(const Args& args, int64_t dim, int64_t stride, Buffers& buffers)
        : args_(args), dim_(dim), stride_(stride), buffers_(buffers) {
        buffers.sum.resize(stride * dim);
        buffers.scores.resize(stride * kTileKeys);
        buffers.max.resize(stride);
        buffers.total.resize(stride);
        buffers.position.resize(stride);
    }

    float* sum() { return buffers_.sum.data(); }
    float* scores() { return buffers_.scores.data(); }

    void start(const Place& place) {
        const int64_t rows = place.rows(), group = args_.group();
        std::fill_n(buffers_.sum.begin(), rows * dim_, 0.0f);
        std::fill_n(buffers_.total.begin(), stride_, 0.0f);
        std::fill_n(buffers_.max.begin(), stride_, -std::numeric_limits<float>::infinity());
        for (int64_t row = 0; row < rows; ++row)
            buffers_.position[row] = static_cast<float>(place.first_position() + row / group);
    }

    // Scores of a tile become weights relative to each row's running maximum; what a row may not see becomes 0.
    template <class Exp>
    void soften_few(const Place& place, int64_t key, int64_t count, Exp exp) {
        for (int64_t r = 0; r < place.rows(); ++r) {
            const int64_t position = place.first_position() + r / args_.group();
            const int64_t oldest = args_.window > 0 ? position - args_.window + 1 : 0;
            const int64_t begin = std::clamp<int64_t>(oldest - key, 0, count);
            const int64_t end = std::clamp<int64_t>(position + 1 - key, begin, count);
            if (begin < end)
                soften_row(scores() + r * kTileKeys, begin, end, r, exp);
            else
                std::fill_n(scores() + r * kTileKeys, kTileKeys, 0.0f);
        }
    }

    // The same for many rows. Calls put(first row of a vector, key of the tile, its weights, those of the next key) for keys two
    // by two; after an odd last one there is a key of no weight.
    template <class Exp, class Put>
    void soften_many(const Place& place, int64_t key, int64_t count, Exp exp, Put put) {
        const int64_t rows = place.rows();
        for (int64_t row = 0; row < rows; row += kLanes) {
            const int64_t last = std::min(row + kLanes, rows) - 1;
            const int64_t oldest = place.first_position() + last / args_.group() - args_.window + 1;
            const bool all_visible = key + count - 1 <= place.first_position() + row / args_.group() &&
                                     (args_.window == 0 || key >= oldest);
            if (all_visible)
                soften_lanes<true>(key, count, row, last + 1, exp, put);
            else
                soften_lanes<false>(key, count, row, last + 1, exp, put);
        }
    }

    void write(const Place& place) {
        for (int64_t r = 0; r < place.rows(); ++r) {
            const float factor = 1.0f / buffers_.total[r];
            float* out = args_.out + place.query(r);
            for (int64_t d = 0; d < args_.head_dim; ++d) out[d] = buffers_.sum[r * dim_ + d] * factor;
        }
    }

    void write_partial(const Place& place, Plan& plan) {
        for (int64_t r = 0; r < place.rows(); ++r) {
            const int64_t at = place.task.partial + r;
            std::copy_n(buffers_.sum.data() + r * dim_, args_.head_dim, plan.sum.data() + at * args_.head_dim);
            plan.max[at] = buffers_.max[r];
            plan.total[at] = buffers_.total[r];
        }
    }

   private:
    template <bool kAllVisible, class Exp, class Put>
    void soften_lanes(int64_t key, int64_t count, int64_t row, int64_t end_row, Exp exp, Put put) {
        const Vec never = Vec{} - std::numeric_limits<float>::infinity(), zero = {};
        const Vec position = load(buffers_.position.data() + row), old = load(buffers_.max.data() + row);
        const Vec oldest = args_.window > 0 ? position - static_cast<float>(args_.window - 1) : never;
        float* scores = buffers_.scores.data() + row;
        Vec top = old;
        for (int64_t j = 0; j < count; ++j) {
            Vec s = load(scores + j * stride_);
            if (args_.softcap > 0.0) s = capped(s);
            if (!kAllVisible) {
                const Vec at = zero + static_cast<float>(key + j);
                s = at > position ? never : s;
                s = at < oldest ? never : s;
            }
            if (!kAllVisible || args_.softcap > 0.0) store(scores + j * stride_, s);
            top = larger(s, top);
        }
        const Vec base = top == never ? zero : top;  // rows that see nothing yet
        const auto weight = [&](int64_t j) {
            const Vec s = load(scores + j * stride_);
            const Vec value = exp(s - base);
            return kAllVisible ? value : s == never ? zero : value;
        };
        Vec total = zero;
        int64_t j = 0;
        for (; j + 2 <= count; j += 2) {
            const Vec first = weight(j), second = weight(j + 1);
            total += first;
            total += second;
            put(row, j, first, second);
        }
        if (j < count) {
            const Vec last = weight(j);
            total += last;
            put(row, j, last, zero);
        }
        const Vec shrink = exp_clamped(old - base);
        store(buffers_.total.data() + row, load(buffers_.total.data() + row) * shrink + total);
        store(buffers_.max.data() + row, top);
        for (int i = 0; row + i < end_row; ++i)
            if (shrink[i] != 1.0f) scale(buffers_.sum.data() + (row + i) * dim_, shrink[i]);
    }

    void scale(float* sum, float factor) const {
        for (int64_t d = 0; d < dim_; d += kLanes) store(sum + d, load(sum + d) * factor);
    }

    Vec capped(Vec s) const {
        const float cap = static_cast<float>(args_.softcap);
        return cap - 2.0f * cap / (exp_clamped(s * (2.0f / cap)) + 1.0f);
    }

    // Of the tile's keys the row may see those from `begin` to before `end`.
    template <class Exp>
    void soften_row(float* scores, int64_t begin, int64_t end, int64_t row, Exp exp) {
        const Vec never = Vec{} - std::numeric_limits<float>::infinity(), zero = {};
        const float old = buffers_.max[row];
        Vec tops = Vec{} + old;
        for (int64_t j = 0; j < kTileKeys; j += kLanes) {
            Vec s = load(scores + j);
            if (args_.softcap > 0.0) s = capped(s);
            const Vec at = lane_numbers() + static_cast<float>(j);
            s = at < zero + static_cast<float>(begin) ? never : s;
            s = at < zero + static_cast<float>(end) ? s : never;
            store(scores + j, s);
            tops = larger(s, tops);
        }
        float top = old;
        for (int i = 0; i < kLanes; ++i) top = tops[i] > top ? tops[i] : top;
        const float base = top == -std::numeric_limits<float>::infinity() ? 0.0f : top;
        Vec totals = zero;
        for (int64_t j = 0; j < kTileKeys; j += kLanes) {
            const Vec s = load(scores + j);
            const Vec value = exp(s - base), weight = s == never ? zero : value;
            totals += weight;
            store(scores + j, weight);
        }
        float total = 0.0f;
        for (int i = 0; i < kLanes; ++i) total += totals[i];
        const float shrink = std::exp(old - base);
        if (shrink != 1.0f) scale(buffers_.sum.data() + row * dim_, shrink);
        buffers_.max[row] = top;
        buffers_.total[row] = buffers_.total[row] * shrink + total;
    }

    const Args& args_;
    const int64_t dim_, stride_;
    Buffers& buffers_;
};

}  // namespace tw
