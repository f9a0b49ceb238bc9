// Shared by the CPU kernels: SIMD vectors as wide as the target's, and an exponential the compiler can vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace tw {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));

static inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

typedef float Quad __attribute__((vector_size(4 * sizeof(float))));

#if defined(__clang__) || __GNUC__ >= 12
#define TW_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t QuadIndex __attribute__((vector_size(4 * sizeof(int32_t))));
#define TW_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, QuadIndex{i, j, k, l})
#endif

// Sum of the four-lane parts of a vector.
static inline Quad fold(Vec v) {
    Quad part[kLanes / 4];
    std::memcpy(part, &v, sizeof v);
    for (int width = kLanes / 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}

// The sums of four vectors' lanes.
static inline Quad sum_lanes(Vec a, Vec b, Vec c, Vec d) {
    const Quad qa = fold(a), qb = fold(b), qc = fold(c), qd = fold(d);
    const Quad ab = TW_SHUFFLE(qa, qb, 0, 4, 2, 6) + TW_SHUFFLE(qa, qb, 1, 5, 3, 7);
    const Quad cd = TW_SHUFFLE(qc, qd, 0, 4, 2, 6) + TW_SHUFFLE(qc, qd, 1, 5, 3, 7);
    return TW_SHUFFLE(ab, cd, 0, 1, 4, 5) + TW_SHUFFLE(ab, cd, 2, 3, 6, 7);
}

static inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// e^x to within 2 ulp on [-87, 88], clamped to it outside; NaN stays NaN. Cody-Waite reduction, Cephes' polynomial.
static inline float exp_clamped(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low mantissa bits
    const float shifted = x * 1.44269504088896341f + magic;
    const float n = shifted - magic;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = static_cast<int32_t>(static_cast<uint32_t>(bits) << 23) + 0x3f800000;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

}  // namespace tw
