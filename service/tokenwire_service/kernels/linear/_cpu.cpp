// Dense linear layers over packed float weights; see _cpu.h for the layout and reference.py for the meaning.
#include "../_cpu_bf16.h"
#include "_cpu.h"

namespace {

using namespace tw;

constexpr int kRows = kLanes == 16 ? 12 : 6;  // rows of x a block of accumulators spans

constexpr int64_t kManyRows = 4 * kRows;

struct Args {
    const float* x;
    const void* weight;
    const float* bias;  // may be null
    float* out;
    void* rounded;  // room for x as the products take it, [rows, in_features up to whole packs]; null where that is x itself
    int64_t rows, out_features, in_features;
};

// How numbers of x and weights are multiplied: kPack input features at a time.
template <class W>
struct Widened {
    typedef W Weight;
    typedef float X;
    static constexpr int64_t kPack = 1;
    static Vec weights(const W* p) { return widen(p); }
    static Vec repeat(const float* p) { return Vec{} + *p; }
    static Vec add(Vec sum, Vec x, Vec weight) { return sum + x * weight; }
};

#if TW_BF16_PRODUCTS
struct Paired {
    typedef BFloat Weight, X;
    static constexpr int64_t kPack = 2;
    static Pairs weights(const BFloat* p) { return load_pairs(p); }
    static Pairs repeat(const BFloat* p) { return repeat_pair(p); }
    static Vec add(Vec sum, Pairs x, Pairs weight) { return add_products(sum, x, weight); }
};
typedef Paired OfBfloat16;
#else
typedef Widened<BFloat> OfBfloat16;
#endif

// One panel's outputs for R rows. `next` is the panel that comes after it, or null.
template <int R, class P>
void block(const Args& args, const typename P::X* x, const typename P::Weight* panel, const typename P::Weight* next,
           int64_t row, int64_t column) {
    Vec sum[R][kPanelVecs] = {};
    const int64_t width = round_up(args.in_features, P::kPack);
    x += row * width;
    for (int64_t k = 0; k < width; k += P::kPack) {
        decltype(P::weights(panel)) weight[kPanelVecs];
        for (int i = 0; i < kPanelVecs; ++i) weight[i] = P::weights(panel + k * kPanel + i * kLanes * P::kPack);
        if (next != nullptr) fetch(next + k * kPanel, kPanel * P::kPack);
        for (int r = 0; r < R; ++r) {
            const auto factor = P::repeat(x + r * width + k);
            for (int i = 0; i < kPanelVecs; ++i) sum[r][i] = P::add(sum[r][i], factor, weight[i]);
        }
    }
    write_panel(args, sum, row, column);
}

template <class P, int R = kRows>
void some_rows(const Args& args, const typename P::X* x, const typename P::Weight* panel,
               const typename P::Weight* next, int64_t row, int64_t count, int64_t column) {
    if (count == R) return block<R, P>(args, x, panel, next, row, column);
    if constexpr (R > 1) some_rows<P, R - 1>(args, x, panel, next, row, count, column);
}

template <class P>
void blocks_of_rows(const Args& args, const typename P::X* x, const typename P::Weight* panel,
                    const typename P::Weight* next, int64_t first, int64_t end, int64_t column) {
    for_blocks_of_rows(first, end, kRows, [&](int64_t row, int64_t count, bool is_last) {
        some_rows<P>(args, x, panel, is_last ? next : nullptr, row, count, column);
    });
}

// A panel in float32, which many rows are worth; the numbers are the same.
template <class W>
const float* widened(const W* panel, int64_t in_features) {
    thread_local std::vector<float> wide;
    wide.resize(kPanel * in_features);
    for (int64_t at = 0; at < kPanel * in_features; at += kLanes) store(wide.data() + at, widen(panel + at));
    return wide.data();
}

// x as the products take it.
const float* prepare(const Args& args, const float*) { return args.x; }
#if TW_BF16_PRODUCTS
const BFloat* prepare(const Args& args, const BFloat*) {
    thread_local std::vector<BFloat> own;
    const int64_t width = round_up(args.in_features, Paired::kPack);
    const auto round = [&](BFloat* to, int64_t row) {
        round_row(args.x + row * args.in_features, args.in_features, to + row * width);
    };
    if (args.rows <= kManyRows) {  // threads would wait for each other longer than each takes for all
        own.resize(args.rows * width);
        for (int64_t row = 0; row < args.rows; ++row) round(own.data(), row);
        return own.data();
    }
    BFloat* shared = static_cast<BFloat*>(args.rounded);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < args.rows; ++row) round(shared, row);
    return shared;
}
#endif

template <class P>
void multiply(const Args& args, const Run& run) {
    typedef typename P::Weight W;
    typedef typename P::X X;
    const X* x = prepare(args, static_cast<const X*>(nullptr));
    const Split split = split_work(args.rows, args.out_features, 4 * kRows, run.threads);
    const int64_t panel_size = kPanel * round_up(args.in_features, P::kPack);
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < split.pieces(); ++piece) {
        count_work();
        const int64_t panel = split.panel(piece);
        const W* weight = static_cast<const W*>(args.weight) + panel * panel_size;
        const int64_t first = split.first_row(piece, args.rows), end = split.end_row(piece, args.rows);
        if constexpr (sizeof(W) < sizeof(X))
            if (end - first >= kManyRows) {
                blocks_of_rows<Widened<float>>(args, x, widened(weight, args.in_features), nullptr, first, end,
                                               panel * kPanel);
                continue;
            }
        blocks_of_rows<P>(args, x, weight, panel + 1 < split.panels ? weight + panel_size : nullptr, first, end,
                          panel * kPanel);
    }
}

struct PackArgs {
    const float* weight;  // [out_features, in_features]
    void* packed;
    int64_t out_features, in_features;
};

// Where the weight of an input feature for one of a panel's outputs lies in the panel.
template <class P>
int64_t place(int64_t k, int64_t lane) {
    return (k / P::kPack * kPanel + lane) * P::kPack + k % P::kPack;
}

template <class P>
void pack(const PackArgs& args) {
    const int64_t width = round_up(args.in_features, P::kPack);
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < (args.out_features + kPanel - 1) / kPanel; ++panel) {
        typename P::Weight* to = static_cast<typename P::Weight*>(args.packed) + panel * kPanel * width;
        for (int64_t k = 0; k < width; ++k)
            for (int64_t lane = 0; lane < kPanel; ++lane) {
                const int64_t row = panel * kPanel + lane;
                const bool inside = row < args.out_features && k < args.in_features;
                from_float(inside ? args.weight[row * args.in_features + k] : 0.0f, to + place<P>(k, lane));
            }
    }
}

struct RowsArgs {
    const int64_t* ids;
    const void* weight;
    float* out;
    int64_t count, first_id, out_features, in_features;
};

// Rows of a packed weight, as an embedding looks them up; zeros for ids outside of it.
template <class P>
void gather(const RowsArgs& args) {
    const int64_t panel_size = kPanel * round_up(args.in_features, P::kPack);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < args.count; ++i) {
        const int64_t row = args.ids[i] - args.first_id;
        float* to = args.out + i * args.in_features;
        if (row < 0 || row >= args.out_features) {
            std::memset(to, 0, args.in_features * sizeof(float));
            continue;
        }
        const auto* panel = static_cast<const typename P::Weight*>(args.weight) + row / kPanel * panel_size;
        for (int64_t k = 0; k < args.in_features; ++k) to[k] = to_float(panel[place<P>(k, row % kPanel)]);
    }
}

}  // namespace

// Whether bfloat16 numbers are multiplied as they are, which rounds the other factor too.
extern "C" int64_t tw_has_bf16_products() { return TW_BF16_PRODUCTS; }

extern "C" int64_t tw_linear_panel() { return kPanel; }

#define TW_LINEAR(NAME, PRODUCTS)                                                                    \
    extern "C" void tw_linear_##NAME(const Args* args, Run* run) { multiply<PRODUCTS>(*args, *run); } \
    extern "C" void tw_linear_pack_##NAME(const PackArgs* args, Run*) { pack<PRODUCTS>(*args); }      \
    extern "C" void tw_linear_rows_##NAME(const RowsArgs* args, Run*) { gather<PRODUCTS>(*args); }

TW_LINEAR(float32, Widened<float>)
TW_LINEAR(float16, Widened<Half>)
TW_LINEAR(bfloat16, OfBfloat16)
