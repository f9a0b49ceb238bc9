// Attention's products in bfloat16 pairs: q, rounded, with the keys as they lie, and the weights, rounded, with values put together
// two keys by two. Scores, maxima and sums are float32.
#pragma once

#include "../_cpu_bf16.h"
#include "_softmax.h"

#if TW_BF16_PRODUCTS
namespace tw {

constexpr int kPairRows = 6;  // rows of a product held at once
constexpr int kPairCols = 4;  // vectors of each, at most

// c[R, C vectors] (+)= a[R, depth pairs] b[depth pairs, C vectors]. The pair (r, k) of a is at a(r) + k * a_step.
template <int R, int C, class A>
inline void multiply_pairs(A a, int64_t a_step, const int32_t* b, int64_t ldb, float* c, int64_t ldc, int64_t depth,
                           bool accumulate) {
    Vec acc[R][C];
    const BFloat* row[R];
    TW_UNROLL
    for (int r = 0; r < R; ++r) row[r] = a(r);
    TW_UNROLL
    for (int r = 0; r < R; ++r)
        TW_UNROLL
        for (int i = 0; i < C; ++i) acc[r][i] = accumulate ? load(c + r * ldc + i * kLanes) : Vec{};
    for (int64_t k = 0; k < depth; ++k) {
        Pairs right[C];
        TW_UNROLL
        for (int i = 0; i < C; ++i) std::memcpy(&right[i], b + k * ldb + i * kLanes, sizeof right[i]);
        TW_UNROLL
        for (int r = 0; r < R; ++r) {
            const Pairs left = repeat_pair(row[r] + k * a_step);
            TW_UNROLL
            for (int i = 0; i < C; ++i) acc[r][i] = add_products(acc[r][i], left, right[i]);
        }
    }
    TW_UNROLL
    for (int r = 0; r < R; ++r)
        TW_UNROLL
        for (int i = 0; i < C; ++i) store(c + r * ldc + i * kLanes, acc[r][i]);
}

template <int R, int C = kPairCols, class A>
inline void multiply_pair_columns(A a, int64_t a_step, const int32_t* b, int64_t ldb, float* c, int64_t ldc,
                                  int64_t depth, int64_t columns, bool accumulate) {
    if (columns == C)
        multiply_pairs<R, C>(a, a_step, b, ldb, c, ldc, depth, accumulate);
    else if constexpr (C > 1)
        multiply_pair_columns<R, C - 1>(a, a_step, b, ldb, c, ldc, depth, columns, accumulate);
}

template <int R = kPairRows, class A>
inline void multiply_pair_rows(A a, int64_t a_step, const int32_t* b, int64_t ldb, float* c, int64_t ldc, int64_t rows,
                               int64_t depth, int64_t columns, bool accumulate) {
    if (rows == R) {
        const int64_t parts = (columns + kPairCols - 1) / kPairCols;
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t from = columns * part / parts, to = columns * (part + 1) / parts;
            multiply_pair_columns<R>(a, a_step, b + from * kLanes, ldb, c + from * kLanes, ldc, depth, to - from,
                                     accumulate);
        }
    } else if constexpr (R > 1) {
        multiply_pair_rows<R - 1>(a, a_step, b, ldb, c, ldc, rows, depth, columns, accumulate);
    }
}

// Queries of few rows lie as [rows, dim], of many as pairs [dim / 2, stride]; weights of few as [rows, kTileKeys], of many as
// pairs [kTileKeys / 2, stride].
class Paired {
   public:
    static bool fits(const Args& args) { return args.head_dim % 2 == 0; }

    Paired(const Args& args, int64_t max_rows, Buffers& buffers)
        : args_(args),
          dim_(round_up(args.head_dim, kPairLanes)),
          stride_(round_up(max_rows, kLanes)),
          buffers_(buffers),
          softmax_(args, dim_, stride_, buffers) {
        buffers.narrow_q.resize(stride_ * dim_);
        buffers.weights.resize(stride_ * kTileKeys);
        buffers.pairs.resize(dim_ * kTileKeys / 2);
        buffers.scaled.resize(dim_);
    }

    Softmax& softmax() { return softmax_; }

    void load_queries(const Place& place) {
        const float scale = static_cast<float>(args_.scale);
        float* scaled = buffers_.scaled.data();
        for (int64_t row = 0; row < place.rows(); ++row) {
            const float* from = args_.q + place.query(row);
            for (int64_t d = 0; d < args_.head_dim; ++d) scaled[d] = from[d] * scale;
            std::fill(scaled + args_.head_dim, scaled + dim_, 0.0f);
            BFloat narrow[kPairLanes];
            for (int64_t d = 0; d < dim_; d += kPairLanes) {
                if (place.few()) {
                    round_row(scaled + d, kPairLanes, buffers_.narrow_q.data() + row * dim_ + d);
                    continue;
                }
                round_row(scaled + d, kPairLanes, narrow);
                for (int64_t i = 0; i < kPairLanes; i += 2)
                    std::copy_n(narrow + i, 2, buffers_.narrow_q.data() + ((d + i) / 2 * stride_ + row) * 2);
            }
        }
    }

    // Takes a tile in; `next_place` and `next_key` say which comes after it.
    void attend(const Place& place, int64_t key, const Place& next_place, int64_t next_key) {
        find_tile(place, key, tile_);
        find_tile(next_place, next_key, next_);
        const int64_t count = tile_.count;
        if (place.few())
            attend_few(place, key, count);
        else
            attend_many(place, key, count);
    }

   private:
    static constexpr auto exp = [](Vec x) { return exp_narrow(x); };

    // Where the keys of a tile lie.
    struct Tile {
        int64_t count;
        int64_t offsets[kTileKeys];
    };

    void find_tile(const Place& place, int64_t key, Tile& tile) const {
        tile.count = std::clamp<int64_t>(place.task.end_key - key, 0, kTileKeys);
        place.for_blocks(key, tile.count, [&](int64_t where, int64_t run, int64_t at) {
            for (int64_t i = 0; i < run; ++i) tile.offsets[at + i] = where + i * args_.head_dim;
        });
    }

    // Asks for the next tile's part of keys or values.
    void fetch_next(const void* blocks, int64_t j, int64_t keys) const {
        const BFloat* all = static_cast<const BFloat*>(blocks);
        for (const int64_t end = std::min(j + keys, next_.count); j < end; ++j)
            for (int64_t d = 0; d < args_.head_dim; d += 32) __builtin_prefetch(all + next_.offsets[j] + d, 0, 2);
    }

    const BFloat* key(int64_t j) const { return static_cast<const BFloat*>(args_.key) + tile_.offsets[j]; }
    const BFloat* value(int64_t j) const { return static_cast<const BFloat*>(args_.value) + tile_.offsets[j]; }

    void attend_few(const Place& place, int64_t first_key, int64_t count) {
        const int64_t rows = place.rows();
        int64_t row = 0;
        for (; row + 3 <= rows; row += 3) score_rows<3>(row, count);
        if (rows - row == 2) score_rows<2>(row, count);
        if (rows - row == 1) score_rows<1>(row, count);
        softmax_.soften_few(place, first_key, count, exp);
        for (int64_t r = 0; r < rows; ++r) {
            const float* weights = softmax_.scores() + r * kTileKeys;
            round_row(weights, count, buffers_.weights.data() + r * kTileKeys);
        }
        row = 0;
        for (; row + 3 <= rows; row += 3) mix_rows<3>(row, count);
        if (rows - row == 2) mix_rows<2>(row, count);
        if (rows - row == 1) mix_rows<1>(row, count);
    }

    // Scores of R rows, four keys at a time, the last one repeated where fewer are left.
    template <int R>
    void score_rows(int64_t row, int64_t count) {
        const BFloat* q = buffers_.narrow_q.data() + row * dim_;
        for (int64_t j = 0; j < count; j += 4) {
            const BFloat* k[4];
            for (int i = 0; i < 4; ++i) k[i] = key(std::min(j + i, count - 1));
            if (row == 0) fetch_next(args_.key, j, 4);
            Vec acc[R][4] = {};
            for (int64_t d = 0; d < args_.head_dim; d += kPairLanes) {
                Pairs part[4];
                for (int i = 0; i < 4; ++i) part[i] = load_pairs(k[i] + d, args_.head_dim - d);
                for (int r = 0; r < R; ++r) {
                    const Pairs query = load_pairs(q + r * dim_ + d);
                    for (int i = 0; i < 4; ++i) acc[r][i] = add_products(acc[r][i], query, part[i]);
                }
            }
            const int64_t wanted = std::min<int64_t>(count - j, 4);
            TW_UNROLL
            for (int r = 0; r < R; ++r) {
                const Quad sums = sum_lanes(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
                std::memcpy(softmax_.scores() + (row + r) * kTileKeys + j, &sums, wanted * sizeof(float));
            }
        }
    }

    // Two keys' values side by side: of dim d and of dim d + kLanes on.
    void pair_values(int64_t j, int64_t count, int64_t d, Pairs& low, Pairs& high) const {
        const Pairs first = load_pairs(value(j) + d, args_.head_dim - d);
        const Pairs second = j + 1 < count ? load_pairs(value(j + 1) + d, args_.head_dim - d) : Pairs{};
        interleave(first, second, low, high);
    }

    template <int R>
    void mix_rows(int64_t row, int64_t count) {
        const BFloat* weights = buffers_.weights.data() + row * kTileKeys;
        for (int64_t d = 0; d < dim_; d += kPairLanes) {
            float* sum = softmax_.sum() + row * dim_ + d;
            Vec acc[R][2];
            for (int r = 0; r < R; ++r)
                for (int i = 0; i < 2; ++i) acc[r][i] = load(sum + r * dim_ + i * kLanes);
            for (int64_t j = 0; j < count; j += 2) {
                Pairs low, high;
                pair_values(j, count, d, low, high);
                if (row == 0 && d == 0) fetch_next(args_.value, j, 2);
                for (int r = 0; r < R; ++r) {
                    const Pairs weight = repeat_pair(weights + r * kTileKeys + j);
                    acc[r][0] = add_products(acc[r][0], weight, low);
                    acc[r][1] = add_products(acc[r][1], weight, high);
                }
            }
            for (int r = 0; r < R; ++r)
                for (int i = 0; i < 2; ++i) store(sum + r * dim_ + i * kLanes, acc[r][i]);
        }
    }

    void attend_many(const Place& place, int64_t first_key, int64_t count) {
        const int64_t vectors = (place.rows() + kLanes - 1) / kLanes;
        const auto* q = reinterpret_cast<const int32_t*>(buffers_.narrow_q.data());
        for (int64_t j = 0; j < count; j += kPairRows) {
            // What is left out nobody may see.
            const int64_t from = place.first_row(first_key + j) / kLanes;
            fetch_next(args_.key, j, kPairRows);
            multiply_pair_rows([&](int r) { return key(j + r); }, 2, q + from * kLanes, stride_,
                               softmax_.scores() + j * stride_ + from * kLanes, stride_,
                               std::min<int64_t>(kPairRows, count - j), args_.head_dim / 2, vectors - from, false);
        }
        BFloat* weights = buffers_.weights.data();
        softmax_.soften_many(place, first_key, count, exp, [&](int64_t row, int64_t j, Vec first, Vec second) {
            const Pairs pairs = pair_lanes(first, second);
            std::memcpy(weights + (j / 2 * stride_ + row) * 2, &pairs, sizeof pairs);
        });
        const int32_t* values = pair_tile(count);
        for (int64_t row = 0; row < place.rows(); row += kPairRows) {
            const int64_t rows = std::min<int64_t>(kPairRows, place.rows() - row);
            const int64_t keys = std::min(count, place.visible(row + rows - 1, first_key));
            multiply_pair_rows([&](int r) { return weights + (row + r) * 2; }, stride_ * 2, values, dim_,
                               softmax_.sum() + row * dim_, dim_, rows, (keys + 1) / 2, dim_ / kLanes, true);
        }
    }

    const int32_t* pair_tile(int64_t count) {
        int32_t* to = buffers_.pairs.data();
        for (int64_t j = 0; j < count; j += 2) {
            fetch_next(args_.value, j, 2);
            for (int64_t d = 0; d < dim_; d += kPairLanes) {
                Pairs low, high;
                pair_values(j, count, d, low, high);
                std::memcpy(to + j / 2 * dim_ + d, &low, sizeof low);
                std::memcpy(to + j / 2 * dim_ + d + kLanes, &high, sizeof high);
            }
        }
        return to;
    }

    const Args& args_;
    const int64_t dim_;     // of a head, up to whole vectors of pairs
    const int64_t stride_;  // rows of a task, up to whole vectors
    Buffers& buffers_;
    Softmax softmax_;
    Tile tile_, next_;
};

}  // namespace tw
#endif
