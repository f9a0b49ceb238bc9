// Shared by the CPU kernels: SIMD vectors as wide as the target's, narrow floats, and an exponential the compiler can vectorise.
//
// A kernel is `extern "C" void name(const Args*, Run*)`, where every member of Args is 8 bytes wide: a pointer, an int64_t or
// a double. All threads of a parallel region call it together; it shares its work out with `omp for` or `omp single`, whose
// barrier at the end it must keep: the next kernel may follow at once (see _cpu_run.cpp).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

// Before a loop over registers: they stay in registers.
#define TW_UNROLL _Pragma("GCC unroll 16")

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

// 0, 1, 2...
static inline Vec lane_numbers() {
    Vec numbers;
    for (int i = 0; i < kLanes; ++i) numbers[i] = static_cast<float>(i);
    return numbers;
}

// The larger of each lane's two; b where a is NaN.
static inline Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vec>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
    return a > b ? a : b;
#endif
}

typedef float Quad __attribute__((vector_size(4 * sizeof(float))));

// The sums of four vectors' lanes.
static inline Quad sum_lanes(Vec a, Vec b, Vec c, Vec d) {
#if defined(__AVX512F__)
    const __m512 ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    const __m512 cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
    const __m512 low = _mm512_shuffle_ps(ab, cd, 0x44), high = _mm512_shuffle_ps(ab, cd, 0xee);
    const __m512 sums = low + high;  // of each 128 bits
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(sums), 1));
    const __m256 half = _mm512_castps512_ps256(sums) + upper;
    return reinterpret_cast<Quad>(_mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
#elif defined(__AVX__)
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return reinterpret_cast<Quad>(_mm256_castps256_ps128(sums) + _mm256_extractf128_ps(sums, 1));
#else
    const Vec parts[4] = {a, b, c, d};
    Quad sums = {};
    for (int i = 0; i < 4; ++i)
        for (int lane = 0; lane < kLanes; ++lane) sums[i] += parts[i][lane];
    return sums;
#endif
}

// Counts what this process has done, kernels and the large ones' pieces: while it grows, a long step does not hang.
extern std::atomic<int64_t> work_done;
inline void count_work() { work_done.fetch_add(1, std::memory_order_relaxed); }

// What the threads of one run share.
struct Run {
    int64_t threads;
    std::shared_ptr<void> plan;  // paged_attention's: layers of one step share it
};

// 16-bit floats as they lie in memory.
struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};

static inline float to_float(float x) { return x; }
static inline float to_float(BFloat x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
static inline float to_float(Half x) {
#if defined(__F16C__)
    return _cvtsh_ss(x.bits);
#else
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
    uint32_t bits = (magnitude << 13) + 0x38000000u;
    float value;
    if (magnitude >= 0x7c00u) bits += 0x38000000u;  // infinity and NaN
    std::memcpy(&value, &bits, sizeof value);
    if (magnitude < 0x0400u) value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // subnormal
    std::memcpy(&bits, &value, sizeof bits);
    bits |= sign;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

// Rounds to nearest even; a magnitude beyond the type's becomes infinity.
static inline void from_float(float x, float* to) { *to = x; }
static inline void from_float(float x, BFloat* to) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to->bits = is_nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
static inline void from_float(float x, Half* to) {
#if defined(__F16C__)
    to->bits = static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    float value;
    std::memcpy(&value, &magnitude, sizeof value);
    uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u;
    } else if (magnitude >= 0x47800000u) {
        half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
        value += 0.5f;
        std::memcpy(&half, &value, sizeof half);
        half -= 0x3f000000u;
    } else {
        half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    to->bits = static_cast<uint16_t>(sign | half);
#endif
}

// A vector's worth of stored numbers, widened.
static inline Vec widen(const float* p) { return load(p); }
static inline Vec widen(const Half* p) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vec>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
    return reinterpret_cast<Vec>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    Vec v;
    for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
    return v;
#endif
}
static inline Vec widen(const BFloat* p) {
#if defined(__AVX512F__)
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return reinterpret_cast<Vec>(_mm512_slli_epi32(wide, 16));
#elif defined(__AVX2__)
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return reinterpret_cast<Vec>(_mm256_slli_epi32(wide, 16));
#else
    Vec v;
    for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
    return v;
#endif
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

typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));

// The same for a vector.
static inline Vec exp_clamped(Vec x) {
    const Vec low = Vec{} - 87.0f, high = Vec{} + 88.0f, magic = Vec{} + 12582912.0f;
    x = larger(low, x);
    x = x > high ? high : x;
    const Vec shifted = x * 1.44269504088896341f + magic, n = shifted - magic;
    const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = Vec{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const IntVec power = (reinterpret_cast<IntVec>(shifted) << 23) + 0x3f800000;
    return p * reinterpret_cast<Vec>(power);
}

}  // namespace tw
