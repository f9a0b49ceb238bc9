// Products of small tiles, held in registers: what attention spends its time in.
#pragma once

#include <algorithm>

#include "_place.h"

namespace tw {

constexpr int kRows = 6;                     // rows of c held at once
constexpr int kCols = kLanes == 16 ? 4 : 2;  // vectors of each
constexpr int kDotRows = 3;                  // rows whose products with four keys are held at once

// A matrix whose rows lie `stride` apart.
template <class T>
struct Matrix {
    const T* data;
    int64_t stride;
    Matrix columns(int64_t from) const { return {data + from, stride}; }
};

// A matrix read number by number: element (r, k) is data[r * row + k * depth].
struct Left {
    const float* data;
    int64_t row, depth;
    Left below(int64_t rows) const { return {data + rows * row, row, depth}; }
};

// Asks for the bytes of one row of memory that is read soon; null asks for nothing.
template <class T>
inline void fetch(const T* row, int64_t count) {
    if (row == nullptr) return;
    for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + i, 0, 2);
}

// c[R, C vectors] (+)= a[R, depth] b[depth, C vectors]
template <int R, int C, class T>
inline void multiply(const Left& a, const Matrix<T>& b, float* c, int64_t ldc, int64_t depth,
                     bool accumulate, const T* next) {
    Vec acc[R][C];
    TW_UNROLL
    for (int r = 0; r < R; ++r)
        TW_UNROLL
        for (int i = 0; i < C; ++i) acc[r][i] = accumulate ? load(c + r * ldc + i * kLanes) : Vec{};
    for (int64_t k = 0; k < depth; ++k) {
        Vec row[C];
        TW_UNROLL
        for (int i = 0; i < C; ++i) row[i] = widen(b.data + k * b.stride + i * kLanes);
        if (next != nullptr) fetch(next + k * b.stride, C * kLanes);
        TW_UNROLL
        for (int r = 0; r < R; ++r) {
            const Vec factor = Vec{} + a.data[r * a.row + k * a.depth];
            TW_UNROLL
            for (int i = 0; i < C; ++i) acc[r][i] += factor * row[i];
        }
    }
    TW_UNROLL
    for (int r = 0; r < R; ++r)
        TW_UNROLL
        for (int i = 0; i < C; ++i) store(c + r * ldc + i * kLanes, acc[r][i]);
}

template <int R, int C = kCols, class T>
void multiply_columns(const Left& a, const Matrix<T>& b, float* c, int64_t ldc, int64_t depth, int64_t columns,
                      bool accumulate, const T* next) {
    if (columns == C)
        multiply<R, C>(a, b, c, ldc, depth, accumulate, next);
    else if constexpr (C > 1)
        multiply_columns<R, C - 1>(a, b, c, ldc, depth, columns, accumulate, next);
}

// In parts of equal width: one of a single vector would be slow.
template <int R, class T>
void multiply_rows(const Left& a, const Matrix<T>& b, float* c, int64_t ldc, int64_t depth,
                   int64_t width, bool accumulate, const T* next) {
    const int64_t vectors = width / kLanes, parts = (vectors + kCols - 1) / kCols;
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t from = vectors * part / parts, to = vectors * (part + 1) / parts, at = from * kLanes;
        multiply_columns<R>(a, b.columns(at), c + at, ldc, depth, to - from, accumulate,
                            next == nullptr ? next : next + at);
    }
}

// c[rows, width] (+)= a[rows, depth] b[depth, width]; width is a multiple of kLanes. `next` is where a matrix like b is read
// from soon, or null.
template <class T>
inline void multiply_all(Left a, const Matrix<T>& b, float* c, int64_t ldc, int64_t rows,
                         int64_t depth, int64_t width, bool accumulate, const T* next = nullptr) {
    for (; rows >= kRows; rows -= kRows, a = a.below(kRows), c += kRows * ldc, next = nullptr)
        multiply_rows<kRows>(a, b, c, ldc, depth, width, accumulate, next);
    switch (rows) {
        case 5: return multiply_rows<5>(a, b, c, ldc, depth, width, accumulate, next);
        case 4: return multiply_rows<4>(a, b, c, ldc, depth, width, accumulate, next);
        case 3: return multiply_rows<3>(a, b, c, ldc, depth, width, accumulate, next);
        case 2: return multiply_rows<2>(a, b, c, ldc, depth, width, accumulate, next);
        case 1: return multiply_rows<1>(a, b, c, ldc, depth, width, accumulate, next);
        default: return;
    }
}

// scores[r, j] = q[r] . k[j], the keys as they lie in their block: four at a time, the last one repeated where fewer are left.
template <int R, class T>
void dot_rows(const float* q, int64_t ldq, const Matrix<T>& k, int64_t keys, float* scores, const T* next) {
    const int64_t head_dim = k.stride;
    const int64_t whole = head_dim / kLanes * kLanes;
    for (int64_t j = 0; j < keys; j += 4) {
        const T* key[4];
        for (int i = 0; i < 4; ++i) key[i] = k.data + std::min<int64_t>(j + i, keys - 1) * head_dim;
        if (next != nullptr) fetch(next + j * head_dim, 4 * head_dim);
        Vec acc[R][4] = {};
        for (int64_t d = 0; d < whole; d += kLanes) {
            Vec part[4];
            for (int i = 0; i < 4; ++i) part[i] = widen(key[i] + d);
            for (int r = 0; r < R; ++r) {
                const Vec row = load(q + r * ldq + d);
                for (int i = 0; i < 4; ++i) acc[r][i] += row * part[i];
            }
        }
        const int64_t count = keys - j;
        TW_UNROLL
        for (int r = 0; r < R; ++r) {
            Quad sums = sum_lanes(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
            for (int64_t d = whole; d < head_dim; ++d)
                for (int i = 0; i < 4; ++i) sums[i] += q[r * ldq + d] * to_float(key[i][d]);
            if (count >= 4)
                std::memcpy(scores + r * kTileKeys + j, &sums, sizeof sums);
            else
                std::memcpy(scores + r * kTileKeys + j, &sums, count * sizeof(float));
        }
    }
}

template <class T>
inline void dot_all(const float* q, int64_t ldq, const Matrix<T>& k, int64_t keys, int64_t rows, float* scores,
                    const T* next) {
    for (; rows >= kDotRows; rows -= kDotRows, q += kDotRows * ldq, scores += kDotRows * kTileKeys, next = nullptr)
        dot_rows<kDotRows>(q, ldq, k, keys, scores, next);
    if (rows == 2) dot_rows<2>(q, ldq, k, keys, scores, next);
    if (rows == 1) dot_rows<1>(q, ldq, k, keys, scores, next);
}

}  // namespace tw
