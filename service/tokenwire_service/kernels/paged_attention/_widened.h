// Attention's products in float32, keys and values widened from the type they are kept in.
#pragma once

#include "_softmax.h"
#include "_tiles.h"

namespace tw {

// Queries of few rows lie as [rows, dim], of many as [head_dim, stride].
template <class KV>
class Widened {
   public:
    Widened(const Args& args, int64_t max_rows, Buffers& buffers)
        : args_(args),
          dim_(round_up(args.head_dim, kLanes)),
          stride_(round_up(max_rows, kLanes)),
          buffers_(buffers),
          softmax_(args, dim_, stride_, buffers) {
        buffers.q.resize(stride_ * dim_);
        buffers.copies.resize(dim_ * kTileKeys);
    }

    Softmax& softmax() { return softmax_; }

    void load_queries(const Place& place) {
        const int64_t row_step = place.few() ? dim_ : 1, dim_step = place.few() ? 1 : stride_;
        const float scale = static_cast<float>(args_.scale);
        for (int64_t row = 0; row < place.rows(); ++row) {
            const float* from = args_.q + place.query(row);
            float* to = buffers_.q.data() + row * row_step;
            for (int64_t d = 0; d < args_.head_dim; ++d) to[d * dim_step] = from[d] * scale;
        }
    }

    void attend(const Place& place, int64_t key, const Place&, int64_t) {
        const int64_t count = std::min(kTileKeys, place.task.end_key - key);
        if (place.few())
            attend_few(place, key, count);
        else
            attend_many(place, key, count);
    }

   private:
    static constexpr auto exp = [](Vec x) { return exp_clamped(x); };

    void attend_few(const Place& place, int64_t key, int64_t count) {
        place.for_blocks(key, count, [&](int64_t where, int64_t run, int64_t at) {
            const Matrix<KV> k = {static_cast<const KV*>(args_.key) + where, args_.head_dim};
            dot_all(buffers_.q.data(), dim_, k, run, place.rows(), softmax_.scores() + at,
                    place.ahead<KV>(args_.key, key + at));
        });
        softmax_.soften_few(place, key, count, exp);
        mix(place, key, count, kTileKeys, 1);
    }

    void attend_many(const Place& place, int64_t key, int64_t count) {
        const int64_t width = round_up(place.rows(), kLanes);
        place.for_blocks(key, count, [&](int64_t where, int64_t run, int64_t at) {
            const float* k = copy(static_cast<const KV*>(args_.key) + where, run);
            // What is left out nobody may see.
            const int64_t from = place.first_row(key + at) / kLanes * kLanes;
            multiply_all(Left{k, dim_, 1}, Matrix<float>{buffers_.q.data() + from, stride_},
                         softmax_.scores() + at * stride_ + from, stride_, run, args_.head_dim, width - from, false);
        });
        softmax_.soften_many(place, key, count, exp, [&](int64_t row, int64_t j, Vec first, Vec second) {
            float* to = softmax_.scores() + j * stride_ + row;
            store(to, first);
            store(to + stride_, second);
        });
        mix(place, key, count, 1, stride_);
    }

    // Adds the weighted values: weight (row, key) is scores[row * row_step + key * key_step]. Few rows read the values as they
    // lie; many are worth a widened copy.
    void mix(const Place& place, int64_t key, int64_t count, int64_t row_step, int64_t key_step) {
        const bool in_place = dim_ == args_.head_dim && (place.few() || sizeof(KV) == sizeof(float));
        place.for_blocks(key, count, [&](int64_t where, int64_t run, int64_t at) {
            const KV* v = static_cast<const KV*>(args_.value) + where;
            const int64_t from = place.first_row(key + at), rows = place.rows() - from;
            const Left weights = {softmax_.scores() + at * key_step + from * row_step, row_step, key_step};
            float* sum = softmax_.sum() + from * dim_;
            if (in_place)
                multiply_all(weights, Matrix<KV>{v, dim_}, sum, dim_, rows, run, dim_, true,
                             place.few() ? place.ahead<KV>(args_.value, key + at) : nullptr);
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

    const Args& args_;
    const int64_t dim_;     // of a head, up to whole vectors
    const int64_t stride_;  // rows of a task, up to whole vectors
    Buffers& buffers_;
    Softmax softmax_;
};

}  // namespace tw
