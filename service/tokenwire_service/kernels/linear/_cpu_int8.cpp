// Linear layers over 8-bit weights in groups of 32 input features with a scale each; see reference.py for the meaning.
//
// x is rounded to 8 bits too, per row and group, so that products are summed exactly in integers; a row's result depends on
// that row alone. Panels are those of _cpu.h; within a panel each group holds its outputs' scales, then its weights, kPack input
// features of one output side by side.
#include <algorithm>
#include <cmath>

#include "_cpu.h"

namespace {

using namespace tw;

constexpr int64_t kGroup = 32;

#if defined(__AVX512VNNI__)
// 4 products a lane and instruction. One factor is unsigned there: weights are stored with 128 added, which costs a
// correction by the sum of the row's group.
constexpr int kRows = 6;
constexpr int64_t kPack = 4;
constexpr int kOffset = 128;
typedef int8_t Activation;
#else
// 2 products a lane and instruction, of weights widened to 16 bits.
constexpr int kRows = 3;
constexpr int64_t kPack = 2;
constexpr int kOffset = 0;
typedef int16_t Activation;
#endif

constexpr int64_t kScaleBytes = kPanel * sizeof(Half);
constexpr int64_t kGroupBytes = kScaleBytes + kPanel * kGroup;

typedef int32_t IVec __attribute__((vector_size(kLanes * sizeof(int32_t))));

struct Args {
    const float* x;
    const uint8_t* weight;
    const float* bias;  // may be null
    float* out;
    Activation* rounded;  // room for [rows, groups * kGroup]
    float* scales;        // room for [rows, groups]
    int32_t* start;       // room for [rows, groups]: what sums begin with
    int64_t rows, out_features, in_features;
    int64_t groups() const { return (in_features + kGroup - 1) / kGroup; }
};

void round_group(const Args& args, int64_t row, int64_t group) {
    const float* x = args.x + row * args.in_features + group * kGroup;
    const int64_t count = std::min(kGroup, args.in_features - group * kGroup), at = row * args.groups() + group;
    float top = 0.0f, poison = 0.0f;
#pragma omp simd reduction(max : top) reduction(+ : poison)
    for (int64_t i = 0; i < count; ++i) {
        top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
        poison += x[i] * 0.0f;  // NaN where a number is not finite
    }
    const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
    Activation* to = args.rounded + at * kGroup;
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
        const int32_t value = static_cast<int32_t>(std::nearbyint(x[i] * inverse));
        to[i] = static_cast<Activation>(value);
        sum += value;
    }
    std::fill(to + count, to + kGroup, Activation(0));
    args.scales[at] = top / 127.0f + poison;
    args.start[at] = -kOffset * sum;
}

// acc += the products of kPack input features.
inline IVec add_products(IVec acc, const uint8_t* weight, const Activation* x) {
    int32_t packed;
    std::memcpy(&packed, x, sizeof packed);
#if defined(__AVX512VNNI__)
    const __m512i w = _mm512_loadu_si512(weight);
    return reinterpret_cast<IVec>(
        _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), w, _mm512_set1_epi32(packed)));
#elif defined(__AVX512BW__)
    const __m512i w = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight)));
    return acc + reinterpret_cast<IVec>(_mm512_madd_epi16(w, _mm512_set1_epi32(packed)));
#elif defined(__AVX2__)
    const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight)));
    return acc + reinterpret_cast<IVec>(_mm256_madd_epi16(w, _mm256_set1_epi32(packed)));
#else
    for (int i = 0; i < kLanes; ++i)
        for (int64_t p = 0; p < kPack; ++p) acc[i] += static_cast<int8_t>(weight[i * kPack + p]) * x[p];
    return acc;
#endif
}

template <int R>
void block(const Args& args, const uint8_t* panel, int64_t row, int64_t column) {
    const int64_t groups = args.groups();
    Vec sum[R][kPanelVecs] = {};
    for (int64_t g = 0; g < groups; ++g, panel += kGroupBytes) {
        const Half* scales = reinterpret_cast<const Half*>(panel);
        const uint8_t* weight = panel + kScaleBytes;
        IVec acc[R][kPanelVecs];
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < kPanelVecs; ++i) acc[r][i] = IVec{} + args.start[(row + r) * groups + g];
        for (int64_t k = 0; k < kGroup; k += kPack)
            for (int r = 0; r < R; ++r)
                for (int i = 0; i < kPanelVecs; ++i)
                    acc[r][i] = add_products(acc[r][i], weight + (k * kPanelVecs + i * kPack) * kLanes,
                                             args.rounded + ((row + r) * groups + g) * kGroup + k);
        for (int i = 0; i < kPanelVecs; ++i) {
            const Vec scale = widen(scales + i * kLanes);
            for (int r = 0; r < R; ++r)
                sum[r][i] += __builtin_convertvector(acc[r][i], Vec) * (scale * args.scales[(row + r) * groups + g]);
        }
    }
    write_panel(args, sum, row, column);
}

template <int R = kRows>
void some_rows(const Args& args, const uint8_t* panel, int64_t row, int64_t count, int64_t column) {
    if (count == R) return block<R>(args, panel, row, column);
    if constexpr (R > 1) some_rows<R - 1>(args, panel, row, count, column);
}

struct PackArgs {
    const float* weight;  // [out_features, in_features]
    uint8_t* packed;
    int64_t out_features, in_features;
};

// One output's group: its scale is a Half, and the weights are rounded by what that Half holds.
void pack_group(const PackArgs& args, int64_t row, int64_t group, uint8_t* to, int64_t lane) {
    const int64_t first = group * kGroup, count = std::min(kGroup, args.in_features - first);
    const float* from = args.weight + row * args.in_features + first;
    float top = 0.0f;
    for (int64_t i = 0; i < count; ++i) top = std::max(top, std::fabs(from[i]));
    Half scale;
    from_float(top / 127.0f, &scale);
    std::memcpy(to + lane * sizeof scale, &scale, sizeof scale);
    const float step = to_float(scale), inverse = step > 0.0f ? 1.0f / step : 0.0f;
    for (int64_t i = 0; i < count; ++i) {
        const float value = std::clamp(std::nearbyint(from[i] * inverse), -127.0f, 127.0f);
        to[kScaleBytes + (i / kPack * kPanel + lane) * kPack + i % kPack] =
            static_cast<uint8_t>(static_cast<int32_t>(value) + kOffset);
    }
}

struct RowsArgs {
    const int64_t* ids;
    const uint8_t* weight;
    float* out;
    int64_t count, first_id, out_features, in_features;
};

void gather_row(const RowsArgs& args, int64_t row, float* to) {
    const int64_t groups = (args.in_features + kGroup - 1) / kGroup, lane = row % kPanel;
    const uint8_t* panel = args.weight + row / kPanel * groups * kGroupBytes;
    for (int64_t k = 0; k < args.in_features; ++k) {
        const uint8_t* group = panel + k / kGroup * kGroupBytes;
        Half scale;
        std::memcpy(&scale, group + lane * sizeof scale, sizeof scale);
        const int64_t i = k % kGroup;
        const uint8_t byte = group[kScaleBytes + (i / kPack * kPanel + lane) * kPack + i % kPack];
        to[k] = to_float(scale) * static_cast<float>(static_cast<int8_t>(byte - kOffset));
    }
}

}  // namespace

extern "C" int64_t tw_linear_int8_bytes(int64_t out_features, int64_t in_features) {
    return (out_features + kPanel - 1) / kPanel * ((in_features + kGroup - 1) / kGroup) * kGroupBytes;
}

extern "C" int64_t tw_linear_int8_activation_bytes() { return sizeof(Activation); }

extern "C" void tw_linear_int8(const Args* args, Run* run) {
    const int64_t groups = args->groups();
#pragma omp for schedule(static)
    for (int64_t i = 0; i < args->rows * groups; ++i) round_group(*args, i / groups, i % groups);
    const Split split = split_work(args->rows, args->out_features, 4 * kRows, run->threads);
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < split.pieces(); ++piece) {
        count_work();
        const int64_t panel = split.panel(piece);
        const uint8_t* weight = args->weight + panel * groups * kGroupBytes;
        for_blocks_of_rows(split.first_row(piece, args->rows), split.end_row(piece, args->rows), kRows,
                           [&](int64_t row, int64_t count, bool) {
                               some_rows<>(*args, weight, row, count, panel * kPanel);
                           });
    }
}

extern "C" void tw_linear_pack_int8(const PackArgs* args, Run*) {
    const int64_t groups = (args->in_features + kGroup - 1) / kGroup;
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < (args->out_features + kPanel - 1) / kPanel; ++panel) {
        uint8_t* to = args->packed + panel * groups * kGroupBytes;
        for (int64_t g = 0; g < groups; ++g, to += kGroupBytes) {
            std::memset(to, 0, kScaleBytes);
            std::memset(to + kScaleBytes, kOffset, kGroupBytes - kScaleBytes);
            const int64_t lanes = std::min(kPanel, args->out_features - panel * kPanel);
            for (int64_t lane = 0; lane < lanes; ++lane) pack_group(*args, panel * kPanel + lane, g, to, lane);
        }
    }
}

extern "C" void tw_linear_rows_int8(const RowsArgs* args, Run*) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < args->count; ++i) {
        const int64_t row = args->ids[i] - args->first_id;
        float* to = args->out + i * args->in_features;
        if (row < 0 || row >= args->out_features)
            std::memset(to, 0, args->in_features * sizeof(float));
        else
            gather_row(*args, row, to);
    }
}
